package watch

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/qmp"
	"vmnet/tapmgr"
)

// Guests of libvirt's are asked through it, when QEMU has told it of a change. That taints them (custom-monitor), so
// it is done only for those with a NIC whose groups are mirrored, and the connection for it is there only with one.

// reach connects to libvirt where that is needed, and leaves it where it is not; nil without a connection.
func (m *mirrors) reach(ctx context.Context) ask {
	needed := false
	for _, g := range m.guests {
		needed = needed || g.ofLibvirt()
	}
	if !needed || m.w.DialMonitor == nil {
		m.hangUp()
		return nil
	}
	if m.monitor == nil && !m.redial(ctx) {
		return nil
	}
	conn := m.monitor // it may be another one before the answer is there
	return func(ctx context.Context, x tapmgr.Mirror) ([]raw.RxFilterInfo, error) {
		return filtersOf(ctx, conn, x.Guest)
	}
}

// redial makes a new connection, or reports why there is none.
func (m *mirrors) redial(ctx context.Context) (done bool) {
	if err := m.connect(ctx); err != nil {
		m.hangUp()
		if text := err.Error(); text != m.told {
			m.told = text
			m.w.report(Report{Text: "libvirt's guests are not asked for their multicast groups", Err: err})
		}
		return false
	}
	m.told = ""
	for _, g := range m.guests { // what has changed meanwhile, nobody has told us
		g.due, g.rested = true, time.Time{}
	}
	return true
}

func (m *mirrors) connect(ctx context.Context) (err error) {
	if m.monitor, err = m.w.dial(ctx, m.w.DialMonitor); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m.changes, err = m.monitor.SubscribeMonitor(ctx, nil, eventBuffer, rxChanged)
	return err
}

// hangUp may be called without a connection.
func (m *mirrors) hangUp() {
	if m.monitor != nil {
		_ = m.monitor.Close() // and with it the subscription
	}
	m.monitor, m.changes = nil, nil
}

// noteChange tells whether an event is about a guest that we ask.
func (m *mirrors) noteChange(e libvirt.Event) (is bool) {
	for _, g := range m.guests {
		if strings.EqualFold(g.nics[0].Guest.UUID, e.Domain.UUID.String()) {
			g.due, g.rested = true, time.Time{}
			is = true // of several that say to be it, any
		}
	}
	return is
}

// filtersOf asks for what a guest wants to hear. That it is the guest of that UUID is only what its command line says: libvirt must
// know better, or whoever writes another's there would have that one tainted.
func filtersOf(ctx context.Context, conn *libvirt.Conn, q qemu.Process) ([]raw.RxFilterInfo, error) {
	uuid, err := domainxml.ParseUUID(q.UUID)
	if err != nil {
		return nil, err
	}
	dom, err := conn.LookupByUUID(ctx, uuid)
	if err != nil {
		return nil, err
	}
	def, err := definition(ctx, conn, dom)
	if err != nil {
		return nil, err
	}
	all, err := qemu.OfDomain(def.Name, def.UUID.String(), def.RunAs)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 || all[0].PID != q.PID {
		return nil, fmt.Errorf("%w: process %d says that it is libvirt's domain %s, and so does another", qemu.ErrAmbiguous, q.PID, dom.Name)
	}
	c, err := qmp.Through(ctx, relay{conn, dom})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return filtersBy(ctx, c)
}

// relay passes commands to the QEMU of a domain through libvirt. Nobody waits for its events.
type relay struct {
	conn *libvirt.Conn
	dom  libvirt.Domain
}

func (r relay) Command(ctx context.Context, command string, _ *os.File) (answer string, err error) {
	return r.conn.MonitorCommand(ctx, r.dom, command)
}

func (r relay) Event(ctx context.Context) (qmp.Event, error) {
	<-ctx.Done()
	return qmp.Event{}, qmp.ErrClosed
}

func (r relay) Close() error { return nil }
