package watch

import (
	"bytes"
	"fmt"
	"maps"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// tellEvery bounds how often a reset address of the same tap is reported: the tap's holder can
// change it without end.
const tellEvery = 10 * time.Second

// addresses resets the addresses of taps that their holders have changed; see backend.HostAddress.
// Only the goroutine that handles the kernel's events uses it, and events come no faster than it
// handles them: excess events are lost, and the links are read again after a pause.
type addresses struct {
	setBack func(index int) (nic.Action, error)
	report  func(Report)
	told    map[int]told // by interface index
}

// told records when a tap was reported, and how many resets since then were not reported.
type told struct {
	at     time.Time
	silent int
}

func newAddresses(setBack func(int) (nic.Action, error), report func(Report)) *addresses {
	return &addresses{setBack: setBack, report: report, told: map[int]told{}}
}

// link checks a tap that is new or was changed.
func (a *addresses) link(l *rtnl.Link) {
	want, ok := backend.HostAddress(l)
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

// keep forgets all links except these.
func (a *addresses) keep(there map[int]bool) {
	maps.DeleteFunc(a.told, func(index int, _ told) bool { return !there[index] })
}
