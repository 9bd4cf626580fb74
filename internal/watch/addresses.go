package watch

import (
	"bytes"
	"fmt"
	"maps"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// tellEvery bounds how often it is reported that the same tap's address was set back: its holder can change it without
// end.
const tellEvery = 10 * time.Second

// addresses sets back the addresses of taps that their holders have changed; see tapmgr.HostAddress. It is for the
// goroutine of the kernel's events, which come no faster than that works them off: what is too much is lost, and read
// again after a pause.
type addresses struct {
	setBack func(index int) (nic.Action, error)
	report  func(Report)
	told    map[int]told // by interface index
}

// told is when a tap was reported, and how often its address was set back since without a word.
type told struct {
	at     time.Time
	silent int
}

func newAddresses(setBack func(int) (nic.Action, error), report func(Report)) *addresses {
	return &addresses{setBack: setBack, report: report, told: map[int]told{}}
}

// link looks at a tap that is new or was changed.
func (a *addresses) link(l *rtnl.Link) {
	want, ok := tapmgr.HostAddress(l)
	if !ok || bytes.Equal(want, l.MAC) {
		return
	}
	done, err := a.setBack(l.Index)
	if !done.Changed && err == nil {
		return
	}
	t := a.told[l.Index]
	if time.Since(t.at) < tellEvery {
		t.silent++
		a.told[l.Index] = t
		return
	}
	r := Report{Text: done.Action, Guest: done.VM, NIC: done.NIC, Interface: l.Name, Err: err}
	if t.silent > 0 {
		r.Text += fmt.Sprintf(" (and %d times since the last report)", t.silent)
	}
	a.told[l.Index] = told{at: time.Now()}
	a.report(r)
}

func (a *addresses) forget(index int) { delete(a.told, index) }

// keep forgets all links but these.
func (a *addresses) keep(there map[int]bool) {
	maps.DeleteFunc(a.told, func(index int, _ told) bool { return !there[index] })
}
