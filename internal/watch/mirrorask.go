package watch

import (
	"context"
	"errors"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/qmp"
	"vmnet/tapmgr"
)

// Guests are asked outside work's goroutine, which no guest may block.

// maxAsks bounds how many guests are asked at the same time by one path. It is less than the calls
// that libvirtd processes for a connection (max_client_requests, 5): with that many hung calls it
// would not even read a keepalive.
const maxAsks = 4

// errSilent is the error for a libvirt guest that was asked and has not answered yet.
var errSilent = errors.New("libvirt waits for its QEMU (is it stopped, or busy with another job of the domain?)")

// ask returns what the drivers of all NICs of the guest that holds x want to receive.
type ask func(ctx context.Context, x tapmgr.Mirror) ([]raw.RxFilterInfo, error)

// way is a path by which guests are asked.
type way struct {
	open  func(context.Context) ask // nil if no guest can be asked now
	slots chan struct{}
}

type answer struct {
	g       *guest
	filters []raw.RxFilterInfo
	err     error
}

func newWay(open func(context.Context) ask) way {
	return way{open: open, slots: make(chan struct{}, maxAsks)}
}

// tick marks the guests to ask now: each guest with a monitor of its own, and each libvirt guest
// that has not answered, or every libvirt guest if all is set.
func (m *mirrors) tick(all bool) {
	for _, g := range m.guests {
		switch {
		case !g.ofLibvirt():
			g.due = !g.asking
		case g.asking:
			m.missed(g, errSilent)
		default:
			g.due = g.due || all || g.misses > 0
		}
	}
}

func (g *guest) ofLibvirt() bool { return g.nics[0].IsLibvirts }

// askDue asks the marked guests, except those that have still not answered: libvirtd does not stop
// asking when its client stops waiting. It would ask a stopped QEMU again and again until it has no
// worker left for others.
func (m *mirrors) askDue(ctx context.Context) {
	own, domains := m.own.open(ctx), m.domains.open(ctx)
	now := time.Now()
	for _, g := range m.guests {
		do, slots := own, m.own.slots
		if g.ofLibvirt() {
			do, slots = domains, m.domains.slots
		}
		if do != nil && g.due && !g.asking && !now.Before(g.rested) {
			m.start(ctx, g, do, slots)
		}
	}
}

// start asks as soon as there is a slot. It ends with an answer, or with ctx.
func (m *mirrors) start(ctx context.Context, g *guest, do ask, slots chan struct{}) {
	g.due, g.asking = false, true
	x := g.nics[0]
	m.asks.Go(func() {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		filters, err := do(ctx, x)
		<-slots
		select {
		case m.answers <- answer{g, filters, err}:
		case <-ctx.Done():
		}
	})
}

// poll asks a guest that has its own monitor.
func (m *mirrors) poll(ctx context.Context, x tapmgr.Mirror) (filters []raw.RxFilterInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollPatience)
	defer cancel()
	err = m.taps.WithMonitor(ctx, x, func(c *qmp.Conn) (err error) {
		filters, err = filtersBy(ctx, c)
		return err
	})
	return filters, err
}

// answered passes a guest's answer to its NICs.
func (m *mirrors) answered(a answer) {
	g := a.g
	g.asking = false
	if m.guests[g.nics[0].PID] != g {
		return // it is gone
	}
	if a.err != nil {
		m.missed(g, a.err)
		if g.ofLibvirt() {
			g.rested = time.Now().Add(restOf(g.misses))
		}
		return
	}
	g.misses, g.rested = 0, time.Time{}
	for _, x := range g.nics {
		for _, f := range a.filters {
			if f.Name == x.Device {
				m.follow(g, x, f)
			}
		}
	}
}

// restOf returns the pause before a guest is asked again after so many misses: ever longer once its
// NICs accept all multicast.
func restOf(misses int) time.Duration {
	if misses < maxMisses {
		return 0
	}
	return min(pollEvery<<min(misses-maxMisses, 10), slowestAsk)
}

// missed makes a guest's NICs accept all multicast after some time without an answer.
func (m *mirrors) missed(g *guest, err error) {
	if g.misses++; g.misses != maxMisses {
		return
	}
	m.takeAll(g)
	if x := g.nics[0]; g.once("no answer") {
		m.w.report(Report{
			Text: "cannot be asked for its multicast groups, and accepts all", Guest: x.VM, NIC: x.NIC,
			Interface: x.Interface, Err: err,
		})
	}
}
