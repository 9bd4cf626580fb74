package watch

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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
	// maxMisses is after how many polls without an answer a guest's NICs take in all multicast again.
	maxMisses = 5
	// maxPolls bounds how many monitors are asked at the same time.
	maxPolls = 4
	// eventPause is how long we wait for more of a guest's changes before we ask what they are. QEMU tells of
	// another one only after that.
	eventPause = 100 * time.Millisecond
)

// rxChanged is QEMU's event of a changed filter (qapi/net.json).
const rxChanged = "NIC_RX_FILTER_CHANGED"

// mirrors has macvtaps take in the multicast groups that their guests ask for. All but stir is for work's goroutine.
type mirrors struct {
	w     *watcher
	dirty atomic.Bool

	guests  map[int]*guest // by process
	monitor *libvirt.Conn  // while there is a guest of libvirt's; nil else
	changes *libvirt.Subscription
	told    string    // the last failure to reach libvirt
	failed  string    // the last failure to look for NICs
	rested  time.Time // when we may look again
}

// guest is one with NICs whose groups are mirrored.
type guest struct {
	nics   []tapmgr.Mirror
	misses int             // polls without an answer since the last one with
	due    bool            // of libvirt's: it has changed something
	told   map[string]bool // reports that were made once
}

func newMirrors(w *watcher) *mirrors { return &mirrors{w: w, guests: map[int]*guest{}} }

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
			m.look(n)
			m.poll(ctx)
			m.ask(ctx, n%lookEvery == 0)
			n++
		case e, open := <-m.events():
			if !open {
				m.hangUp()
			} else if m.noteChange(e) {
				pause.Reset(eventPause)
			}
		case <-pause.C:
			m.ask(ctx, false)
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
func (m *mirrors) look(n int) {
	start := time.Now()
	if start.Before(m.rested) || !m.dirty.Swap(false) && n%lookEvery != 0 {
		return
	}
	all, err := m.w.Manager.Mirrors()
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
		return &guest{misses: old.misses, due: old.due, told: old.told}
	}
	return &guest{due: true, told: map[string]bool{}}
}

func (g *guest) add(x tapmgr.Mirror) { g.nics = append(g.nics, x) }

// poll asks the guests that have monitors of their own, each once.
func (m *mirrors) poll(ctx context.Context) {
	slots := make(chan struct{}, maxPolls)
	var all sync.WaitGroup
	for _, g := range m.guests {
		if g.nics[0].Guest.Libvirt {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, pollPatience)
			defer cancel()
			filters, err := m.w.Manager.RxFilters(ctx, g.nics[0])
			m.answered(g, filters, err)
		})
	}
	all.Wait()
}

// answered tells a guest's NICs what it has asked for, or after some time without an answer that all is to be taken in.
func (m *mirrors) answered(g *guest, filters []qmp.RxFilter, err error) {
	if err != nil {
		if g.misses++; g.misses == maxMisses {
			m.takeAll(g)
			if x := g.nics[0]; g.once("no answer") {
				m.w.report(Report{Text: "cannot be asked for its multicast groups, and takes in all", Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err})
			}
		}
		return
	}
	g.misses = 0
	for _, x := range g.nics {
		for _, f := range filters {
			if f.Name == x.Device {
				m.follow(g, x, f)
			}
		}
	}
}

func (m *mirrors) follow(g *guest, x tapmgr.Mirror, f qmp.RxFilter) {
	changed, err := m.w.Manager.Follow(x, f)
	if isGone(err) {
		m.stir()
		return
	}
	r := Report{Text: "takes in " + filterText(f), Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err}
	if (changed || err != nil) && g.once(fmt.Sprint(x.NIC, r.Text, err)) {
		m.w.report(r)
	}
	if mac, err := net.ParseMAC(f.MainMAC); err == nil && mac.String() != x.MAC.String() && g.once(x.NIC+mac.String()) {
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

func filterText(f qmp.RxFilter) string {
	if f.Promiscuous || f.Multicast == "all" || f.MulticastOverflow {
		return "all multicast, as the guest wants"
	}
	if f.Multicast == "none" || len(f.MulticastTable) == 0 {
		return "no multicast, as the guest wants"
	}
	const most = 8
	list := f.MulticastTable
	if len(list) > most {
		list = append(list[:most:most], fmt.Sprintf("%d more", len(f.MulticastTable)-most))
	}
	return "multicast to " + strings.Join(list, " ")
}

// takeAll has a guest's NICs take in all multicast.
func (m *mirrors) takeAll(g *guest) {
	for _, x := range g.nics {
		changed, err := m.w.Manager.TakeAll(x)
		if !isGone(err) && (changed || err != nil) {
			m.w.report(Report{Text: "takes in all multicast again", Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err})
		}
	}
}

// leave leaves all as it is right without us.
func (m *mirrors) leave() {
	for _, g := range m.guests {
		m.takeAll(g)
	}
	m.hangUp()
}
