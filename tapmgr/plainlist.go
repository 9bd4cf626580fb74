package tapmgr

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"vmnet/internal/plaintap"
	"vmnet/internal/procfd"
	"vmnet/internal/qemu"
	"vmnet/internal/tun"
)

// isPlain reports whether only the tap's bridge is known, and no guest or NIC.
func (o *ours) isPlain() bool { return o.want.VM == "" }

// plainTaps lists those of the Manager's netns.
func (m *Manager) plainTaps() ([]plaintap.Tap, error) {
	links, err := m.nl.Links("tun", 0)
	if err != nil {
		return nil, err
	}
	var found []plaintap.Tap
	for _, l := range links {
		if t, ok := plaintap.Parse(l.Alias); ok && l.Tun != nil {
			t.Link = l
			found = append(found, t)
		}
	}
	return found, nil
}

// plainHeld is plainTaps by name, and who of those that the caller may look into holds them.
func (m *Manager) plainHeld() ([]ours, error) {
	taps, err := m.plainTaps()
	if err != nil || len(taps) == 0 {
		return nil, err
	}
	inode, err := m.ns.Inode()
	if err != nil {
		return nil, err
	}
	byName := map[string]*ours{}
	for _, t := range taps {
		o := m.own(t.Link, record{Type: TypeTap, Source: t.Source, Port: t.Port, Owner: t.Owner}, m.masterOf(t.Link))
		byName[t.Name] = &o
	}
	err = procfd.All(func(f procfd.File) {
		if !tun.LooksLikeQueue(f) {
			return
		}
		if o := byName[tun.InterfaceOf(f)]; o != nil && tun.InNetns(f, inode) {
			o.addHolder(f)
		}
	})
	var found []ours
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		found = append(found, *byName[name])
	}
	return found, err
}

// plainNICs are the plain taps as rows of ListAll, with the guest's name where QEMU tells it.
func (m *Manager) plainNICs() ([]NIC, error) {
	taps, err := m.plainHeld()
	var nics []NIC
	for _, o := range taps {
		nic := o.state(NIC{
			Interface: o.Name, Type: TypeTap, Source: o.want.Source, Port: o.want.Port, Queues: 1, Vhost: "",
			MTU: o.MTU, State: linkState(o.Link), UID: o.want.Owner,
		})
		if p, err := qemu.ByPID(nic.PID); err == nil {
			nic.VM = p.Name
		}
		nics = append(nics, nic)
	}
	return nics, err
}

// plainTaps removes those that nobody holds, and mends the others. One that was there before it was put on a bridge is
// taken off that instead of being removed.
func (r *reconciler) plainTaps(ctx context.Context) error {
	taps, err := r.m.plainHeld()
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
			return r.m.ifUnheld(o, func() error { return gone(r.m.nl.Delete(o.Index)) })
		})
	}
	return err
}

// ifUnheld looks at a plain tap once more, right before something is done to it.
func (m *Manager) ifUnheld(o ours, do func() error) error {
	l, err := m.nl.LinkByIndex(o.Index)
	if err != nil {
		return gone(err)
	}
	if !o.stillUnheld(l) {
		return fmt.Errorf("%w: interface %s", ErrInUse, o.Name)
	}
	return do()
}

// plainTaps compares the taps of which only their bridge is known.
func (c *checker) plainTaps() error {
	taps, err := c.m.plainHeld()
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
