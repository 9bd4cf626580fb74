package watch

import (
	"context"
	"errors"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/qmp"
	"vmnet/tapmgr"
)

// Guests are asked beside work's goroutine, which nothing that a guest does may hold up.

// maxAsks bounds how many guests are asked at the same time in one way. It is less than the calls that libvirtd works on for a
// connection (max_client_requests, 5): with as many that hang it would not even read that we are alive.
const maxAsks = 4

// errSilent is for a guest of libvirt's that has been asked and has not answered yet.
var errSilent = errors.New("libvirt has no answer of its QEMU yet: is it stopped, or busy with another job of the domain's?")

// ask asks the guest that holds x what the drivers of all its NICs want.
type ask func(ctx context.Context, x tapmgr.Mirror) ([]raw.RxFilterInfo, error)

// way is one of asking guests.
type way struct {
	open  func(context.Context) ask // nil where nobody can be asked now
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

// tick notes who is to be asked now: guests with monitors of their own always, those of libvirt's that have not
// answered, or all.
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

func (g *guest) ofLibvirt() bool { return g.nics[0].Guest.Libvirt }

// askDue asks the guests that are to be asked, but nobody who has still not answered: libvirtd does not stop asking
// when we stop waiting, and would ask a QEMU that is stopped ever more often, until it has no hands free for others.
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

// start asks once there is a slot. It ends with an answer, or with ctx.
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

// poll asks a guest that has a monitor of its own.
func (m *mirrors) poll(ctx context.Context, x tapmgr.Mirror) (filters []raw.RxFilterInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollPatience)
	defer cancel()
	err = m.taps.WithMonitor(ctx, x, func(c *qmp.Conn) (err error) {
		filters, err = filtersBy(ctx, c)
		return err
	})
	return filters, err
}

// answered tells a guest's NICs what it has asked for.
func (m *mirrors) answered(a answer) {
	g := a.g
	g.asking = false
	if m.guests[g.nics[0].Guest.PID] != g {
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

// restOf is how long a guest is let be after so many misses: ever longer once its NICs take in all multicast.
func restOf(misses int) time.Duration {
	if misses < maxMisses {
		return 0
	}
	return min(pollEvery<<min(misses-maxMisses, 10), slowestAsk)
}

// missed has a guest's NICs take in all multicast after some time without an answer.
func (m *mirrors) missed(g *guest, err error) {
	if g.misses++; g.misses != maxMisses {
		return
	}
	m.takeAll(g)
	if x := g.nics[0]; g.once("no answer") {
		m.w.report(Report{Text: "cannot be asked for its multicast groups, and takes in all", Guest: x.VM, NIC: x.NIC, Interface: x.Interface, Err: err})
	}
}
