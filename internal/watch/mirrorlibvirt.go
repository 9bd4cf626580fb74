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

// Libvirt's guests are asked through libvirt, when QEMU has reported a change. That taints them
// (custom-monitor), so it is done only for guests with a NIC whose groups are mirrored, and the
// connection exists only while there is one.

// reach connects to libvirt when that is needed, and disconnects otherwise; nil without a
// connection.
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
	conn := m.monitor // it may be replaced before the answer arrives
	return func(ctx context.Context, x tapmgr.Mirror) ([]raw.RxFilterInfo, error) {
		return filtersOf(ctx, conn, x)
	}
}

// redial makes a new connection and reports whether it succeeded. It logs the reason if not.
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
	for _, g := range m.guests { // changes in between were not reported
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

// hangUp disconnects. It may be called without a connection.
func (m *mirrors) hangUp() {
	if m.monitor != nil {
		_ = m.monitor.Close() // and with it the subscription
	}
	m.monitor, m.changes = nil, nil
}

// noteChange reports whether an event is about a guest that is asked.
func (m *mirrors) noteChange(e libvirt.Event) (is bool) {
	for _, g := range m.guests {
		if strings.EqualFold(g.nics[0].UUID, e.Domain.UUID.String()) {
			g.due, g.rested = true, time.Time{}
			is = true // of several that claim to be the guest, any
		}
	}
	return is
}

// filtersOf asks a guest for its receive filters. Only its command line says that it has that UUID:
// libvirt must confirm it, or a user could write another guest's UUID there and have that guest
// tainted.
func filtersOf(ctx context.Context, conn *libvirt.Conn, x tapmgr.Mirror) ([]raw.RxFilterInfo, error) {
	uuid, err := domainxml.ParseUUID(x.UUID)
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
	if len(all) != 1 || all[0].PID != x.PID {
		return nil, fmt.Errorf("%w: process %d says that it is libvirt's domain %s, and so does another",
			qemu.ErrAmbiguous, x.PID, dom.Name)
	}
	c, err := qmp.Through(ctx, relay{conn, dom})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return filtersBy(ctx, c)
}

// relay passes commands to the QEMU of a domain through libvirt. It does not wait for events.
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
