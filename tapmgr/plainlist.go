package tapmgr

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// isPlain reports whether only the tap's bridge is known, and no guest or NIC.
func (o *ours) isPlain() bool { return o.want.VM == "" }

// plain are the plain taps among links, by name.
func (m *Manager) plain(links []*rtnl.Link) (found []ours) {
	for _, l := range links {
		if t, ok := plaintap.Parse(l.Alias); ok && l.Tun != nil {
			want := nic.Record{Type: nic.TypeTap, Source: t.Source, Port: t.Port, Owner: t.Owner}
			found = append(found, m.own(l, want, m.masterOf(l)))
		}
	}
	slices.SortFunc(found, func(a, b ours) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// plainOf is plain, and who of those that the caller may look into holds them.
func (m *Manager) plainOf(ctx context.Context, links []*rtnl.Link, op *opened) []ours {
	found := m.plain(links)
	for i := range found {
		found[i].addHolders(op, op.queuesOf(ctx, found[i].Name))
	}
	return found
}

// plainHeld is plainOf for all links and processes.
func (m *Manager) plainHeld(ctx context.Context) ([]ours, error) {
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	op, err := m.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return m.plainOf(ctx, links, op), context.Cause(ctx)
}

// plainNICs are the plain taps as rows of ListAll, with the guest's name where QEMU tells it.
func (m *Manager) plainNICs(ctx context.Context, links []*rtnl.Link, op *opened) (nics []nic.NIC) {
	for _, o := range m.plainOf(ctx, links, op) {
		nic := o.state(nic.NIC{
			Interface: o.Name, Type: nic.TypeTap, Source: o.want.Source, Port: o.want.Port, Queues: 1, Vhost: "",
			MTU: o.MTU, State: linkState(o.Link), UID: o.want.Owner,
		})
		if p, err := qemu.ByPID(nic.PID); err == nil {
			nic.VM = p.Name
		}
		nics = append(nics, nic)
	}
	return nics
}

// plainTaps removes those that nobody holds, and mends the others. One that was there before it was put on a bridge is
// taken off that instead of being removed.
func (r *reconciler) plainTaps(ctx context.Context) error {
	taps, err := r.m.plainHeld(ctx)
	for _, o := range taps {
		if !o.unheld() {
			if o.want.Source != "" {
				r.mend(ctx, o)
			}
			continue
		}
		if t, _ := plaintap.Parse(o.Alias); t.Elsewhere {
			t.Link = o.Link
			r.do(o, "taken off its bridge: nobody holds it", func() error { return r.m.ifUnheld(o, func() error { return r.m.takeOff(t) }) })
			continue
		}
		r.do(o, "removed: nobody holds it", func() error {
			return r.m.ifUnheld(o, func() error { return rtnl.IgnoreNotExist(r.m.nl.Delete(o.Index)) })
		})
	}
	return err
}

// ifUnheld looks at a plain tap once more, right before something is done to it.
func (m *Manager) ifUnheld(o ours, do func() error) error {
	l, err := m.nl.LinkByIndex(o.Index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if !o.stillUnheld(l) {
		return fmt.Errorf("%w: interface %s", nic.ErrInUse, o.Name)
	}
	return do()
}

// plainTaps compares the taps of which only their bridge is known.
func (c *checker) plainTaps(ctx context.Context) error {
	taps, err := c.m.plainHeld(ctx)
	for _, o := range taps {
		c.NICs++
		switch {
		case o.unheld():
			c.leftOver(o)
		case o.want.Source != "":
			c.link(o)
		}
	}
	return err
}
