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
	// pollEvery is how often a guest with its own monitor is asked. The monitor serves one client
	// at a time, so staying connected for its events would lock others out.
	pollEvery = 2 * time.Second
	// pollPatience is how long a poll waits for such a monitor before it gives up until the next
	// time.
	pollPatience = 300 * time.Millisecond
	// lookEvery is the number of polls after which NICs are looked for even though no link has
	// changed, and libvirt's guests are asked even though they have not reported a change.
	lookEvery = 15
	// lookPause is the pause after looking for NICs, as a multiple of the time that it took:
	// looking at all processes may take long, and links may change all the time.
	lookPause = 50
	// slowestAsk is the longest pause before a libvirt guest that does not answer is asked again.
	slowestAsk = 30 * time.Second
	// maxMisses is the number of polls without an answer after which a guest's NICs accept all
	// multicast.
	maxMisses = 5
	// eventPause is how long to wait for more changes of a guest before asking for them. QEMU
	// reports another one only after it was asked.
	eventPause = 100 * time.Millisecond
)

// rxChanged is QEMU's event for a changed filter (qapi/net.json).
const rxChanged = "NIC_RX_FILTER_CHANGED"

// macvtaps is the part of tapmgr.Manager that mirrors use.
type macvtaps interface {
	Mirrors(ctx context.Context) ([]tapmgr.Mirror, error)
	WithMonitor(context.Context, tapmgr.Mirror, func(*qmp.Conn) error) error
	Follow(tapmgr.Mirror, []net.HardwareAddr) (changed bool, err error)
	TakeAll(tapmgr.Mirror) (changed bool, err error)
}

// mirrors makes macvtaps accept the multicast groups that their guests ask for. Only work's
// goroutine may call its methods, except stir.
type mirrors struct {
	w     *watcher
	taps  macvtaps
	dirty atomic.Bool

	guests  map[int]*guest // by process
	monitor *libvirt.Conn  // nil unless there is a libvirt guest
	changes *libvirt.Subscription
	own     way // to guests with monitors of their own
	domains way // to libvirt's
	answers chan answer
	asks    sync.WaitGroup
	told    string    // the last failure to reach libvirt
	failed  string    // the last failure to look for NICs
	rested  time.Time // when NICs may be looked for again
}

// guest is a guest with NICs whose groups are mirrored.
type guest struct {
	nics   []tapmgr.Mirror
	misses int             // polls without an answer since the last one with
	due    bool            // to be asked: a libvirt guest has changed something
	asking bool            // it was asked and has not answered
	rested time.Time       // when it may be asked again
	told   map[string]bool // reports made, which are not repeated
}

func newMirrors(w *watcher, taps macvtaps) *mirrors {
	m := &mirrors{w: w, taps: taps, guests: map[int]*guest{}, answers: make(chan answer)}
	m.own = newWay(func(context.Context) ask { return m.poll })
	m.domains = newWay(m.reach)
	return m
}

// stir schedules a search for NICs.
func (m *mirrors) stir() { m.dirty.Store(true) }

// work ends with all NICs accepting all multicast, as they do without vmnet watch.
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

// events returns nil, which never delivers, without libvirt guests.
func (m *mirrors) events() <-chan libvirt.Event {
	if m.changes == nil {
		return nil
	}
	return m.changes.C
}

// look finds the NICs when links have changed, and now and then.
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
		pid := x.PID
		if guests[pid] == nil {
			guests[pid] = m.known(pid)
		}
		guests[pid].add(x)
	}
	m.guests = guests
}

// known returns the state of a guest, without its NICs.
func (m *mirrors) known(pid int) *guest {
	if old := m.guests[pid]; old != nil {
		old.nics = nil
		return old
	}
	return &guest{due: true, told: map[string]bool{}}
}

func (g *guest) add(x tapmgr.Mirror) { g.nics = append(g.nics, x) }

// follow makes the device accept what the driver wants, or all multicast if the driver has not said
// what it wants: QEMU has the NIC promiscuous until then, as for a guest without a driver.
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
	r := Report{Text: "accepts " + groupsText(groups, all), Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err}
	if (changed || err != nil) && g.once(fmt.Sprint(x.NIC, r.Text, err)) {
		m.w.report(r)
	}
	if mac, err := net.ParseMAC(f.MainMac); err == nil && mac.String() != x.MAC.String() && g.once(x.NIC+mac.String()) {
		m.w.report(Report{
			Text: "not followed: its address is locked", Guest: x.VM, NIC: x.NIC, Interface: x.Interface,
			Err: fmt.Errorf("the guest has changed its MAC from %s to %s, which receives no frames", x.MAC, mac),
		})
	}
}

// once reports whether a report of that kind has not been made for the guest yet. It bounds the
// reports that a guest can provoke.
func (g *guest) once(kind string) bool {
	const most = 64
	if g.told[kind] || len(g.told) >= most {
		return false
	}
	g.told[kind] = true
	return true
}

// groupsText formats a few addresses.
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
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// takeAll makes a guest's NICs accept all multicast.
func (m *mirrors) takeAll(g *guest) {
	for _, x := range g.nics {
		changed, err := m.taps.TakeAll(x)
		if !isGone(err) && (changed || err != nil) {
			m.w.report(Report{
				Text: "accepts all multicast again", Guest: x.VM, NIC: x.NIC,
				Interface: x.Interface, Err: err,
			})
		}
	}
}

// leave restores the state that is correct without vmnet watch.
func (m *mirrors) leave() {
	m.asks.Wait()
	for _, g := range m.guests {
		m.takeAll(g)
	}
	m.hangUp()
}
