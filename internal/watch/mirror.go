package watch

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/tapmgr"
)

const (
	// pollEvery is how often a guest with a monitor of its own is asked. The monitor serves one client at a time, so
	// we may not stay and wait for its events.
	pollEvery = 2 * time.Second
	// pollPatience is how long we wait for such a monitor before we let it be until the next time.
	pollPatience = 300 * time.Millisecond
	// lookEvery is after how many polls we look for NICs anew though nothing has happened, and ask libvirt's guests
	// though they have not told of a change.
	lookEvery = 15
	// lookPause is how long we do not look again, as a multiple of how long it has taken: to look at all processes may
	// take long where there are many, and links may change all the time.
	lookPause = 50
	// slowestAsk is how long a guest of libvirt's that cannot be asked is let be at most.
	slowestAsk = 30 * time.Second
	// maxMisses is after how many polls without an answer a guest's NICs take in all multicast again.
	maxMisses = 5
	// eventPause is how long we wait for more of a guest's changes before we ask what they are. QEMU tells of
	// another one only after that.
	eventPause = 100 * time.Millisecond
)

// rxChanged is QEMU's event of a changed filter (qapi/net.json).
const rxChanged = "NIC_RX_FILTER_CHANGED"

// macvtaps is what a tapmgr.Manager does for mirrors.
type macvtaps interface {
	Mirrors(ctx context.Context) ([]tapmgr.Mirror, error)
	WithMonitor(context.Context, tapmgr.Mirror, func(*qmp.Conn) error) error
	Follow(tapmgr.Mirror, []net.HardwareAddr) (changed bool, err error)
	TakeAll(tapmgr.Mirror) (changed bool, err error)
}

// mirrors has macvtaps take in the multicast groups that their guests ask for. All but stir is for work's goroutine.
type mirrors struct {
	w     *watcher
	taps  macvtaps
	dirty atomic.Bool

	guests  map[int]*guest // by process
	monitor *libvirt.Conn  // while there is a guest of libvirt's; nil else
	changes *libvirt.Subscription
	own     way // to guests with monitors of their own
	domains way // to libvirt's
	answers chan answer
	asks    sync.WaitGroup
	told    string    // the last failure to reach libvirt
	failed  string    // the last failure to look for NICs
	rested  time.Time // when we may look again
}

// guest is one with NICs whose groups are mirrored.
type guest struct {
	nics   []tapmgr.Mirror
	misses int             // polls without an answer since the last one with
	due    bool            // to be asked: of libvirt's, it has changed something
	asking bool            // it has been asked, and that has not ended
	rested time.Time       // when it may be asked again
	told   map[string]bool // reports that were made once
}

func newMirrors(w *watcher, taps macvtaps) *mirrors {
	m := &mirrors{w: w, taps: taps, guests: map[int]*guest{}, answers: make(chan answer)}
	m.own = newWay(func(context.Context) ask { return m.poll })
	m.domains = newWay(m.reach)
	return m
}

// stir has NICs looked for soon.
func (m *mirrors) stir() { m.dirty.Store(true) }

// work ends with all NICs taking in all multicast, as they do without us.
func (m *mirrors) work(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	defer m.leave()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.look(ctx, n)
			m.tick(n%lookEvery == 0)
			m.askDue(ctx)
			n++
		case e, open := <-m.events():
			if !open {
				m.hangUp()
			} else if m.noteChange(e) {
				pause.Reset(eventPause)
			}
		case a := <-m.answers:
			m.answered(a)
			if a.g.due { // something has changed since it was asked
				pause.Reset(eventPause)
			}
		case <-pause.C:
			m.askDue(ctx)
		}
	}
}

// events is nil, which never delivers, without libvirt's guests.
func (m *mirrors) events() <-chan libvirt.Event {
	if m.changes == nil {
		return nil
	}
	return m.changes.C
}

// look finds the NICs, where something has happened to links, and now and then.
func (m *mirrors) look(ctx context.Context, n int) {
	start := time.Now()
	if start.Before(m.rested) || !m.dirty.Swap(false) && n%lookEvery != 0 {
		return
	}
	all, err := m.taps.Mirrors(ctx)
	m.rested = time.Now().Add(lookPause * time.Since(start))
	if err != nil {
		if text := err.Error(); text != m.failed {
			m.failed = text
			m.w.did(nil, err)
		}
		return
	}
	guests := map[int]*guest{}
	for _, x := range all {
		pid := x.Guest.PID
		if guests[pid] == nil {
			guests[pid] = m.known(pid)
		}
		guests[pid].add(x)
	}
	m.guests = guests
}

// known is what we know of a guest, without its NICs.
func (m *mirrors) known(pid int) *guest {
	if old := m.guests[pid]; old != nil {
		old.nics = nil
		return old
	}
	return &guest{due: true, told: map[string]bool{}}
}

func (g *guest) add(x tapmgr.Mirror) { g.nics = append(g.nics, x) }

// follow makes the device take in what the driver wants, or all where the driver has not said what it
// wants: QEMU has the NIC promiscuous until then, and so a guest without a driver.
func (m *mirrors) follow(g *guest, x tapmgr.Mirror, f raw.RxFilterInfo) {
	groups, all := groupsOf(f)
	var changed bool
	var err error
	if all {
		changed, err = m.taps.TakeAll(x)
	} else {
		changed, err = m.taps.Follow(x, groups)
	}
	if isGone(err) {
		m.stir()
		return
	}
	r := Report{Text: "takes in " + groupsText(groups, all), Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err}
	if (changed || err != nil) && g.once(fmt.Sprint(x.NIC, r.Text, err)) {
		m.w.report(r)
	}
	if mac, err := net.ParseMAC(f.MainMac); err == nil && mac.String() != x.MAC.String() && g.once(x.NIC+mac.String()) {
		m.w.report(Report{
			Text: "not followed: its address is locked", Guest: x.VM, NIC: x.NIC, Interface: x.Interface,
			Err: fmt.Errorf("the guest has changed its MAC from %s to %s, for which nothing will reach it", x.MAC, mac),
		})
	}
}

// once tells whether a report of that kind has not been made of the guest yet. What a guest can make us
// report is bounded.
func (g *guest) once(kind string) bool {
	const most = 64
	if g.told[kind] || len(g.told) >= most {
		return false
	}
	g.told[kind] = true
	return true
}

// groupsText names few addresses.
func groupsText(groups []net.HardwareAddr, all bool) string {
	if all {
		return "all multicast, as the guest wants"
	}
	if len(groups) == 0 {
		return "no multicast, as the guest wants"
	}
	const most = 8
	text := "multicast to"
	for _, mac := range groups[:min(len(groups), most)] {
		text += " " + mac.String()
	}
	if more := len(groups) - most; more > 0 {
		text += fmt.Sprintf(" %d more", more)
	}
	return text
}

// takeAll has a guest's NICs take in all multicast.
func (m *mirrors) takeAll(g *guest) {
	for _, x := range g.nics {
		changed, err := m.taps.TakeAll(x)
		if !isGone(err) && (changed || err != nil) {
			m.w.report(Report{Text: "takes in all multicast again", Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err})
		}
	}
}

// leave leaves all as it is right without us.
func (m *mirrors) leave() {
	m.asks.Wait()
	for _, g := range m.guests {
		m.takeAll(g)
	}
	m.hangUp()
}
