package tapmgr

import (
	"context"
	"fmt"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// plainTaps removes those that nobody holds, and mends the others. One that was there before it was
// put on a bridge is taken off that instead of being removed.
func (r *reconciler) plainTaps(ctx context.Context) error {
	taps, err := r.m.host.PlainHeld(ctx)
	for _, dev := range taps {
		if !dev.IsOrphaned() {
			if dev.Want.Source != "" {
				r.Mend(ctx, dev)
			}
			continue
		}
		if t, _ := plaintap.Parse(dev.Alias); t.Elsewhere {
			t.Link = dev.Link
			r.Do(dev, "taken off its bridge: nobody holds it", func() error { return r.m.ifUnheld(dev, func() error { return r.m.host.TakeOff(t) }) })
			continue
		}
		r.Do(dev, "removed: nobody holds it", func() error {
			return r.m.ifUnheld(dev, func() error { return rtnl.IgnoreNotExist(r.m.host.NL.Delete(dev.Index)) })
		})
	}
	return err
}

// ifUnheld looks at a plain tap once more, right before something is done to it.
func (m *Manager) ifUnheld(dev inventory.Device, do func() error) error {
	l, err := m.host.NL.LinkByIndex(dev.Index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if !dev.StillUnheld(l) {
		return fmt.Errorf("%w: interface %s", nic.ErrInUse, dev.Name)
	}
	return do()
}

// plainTaps compares the taps of which only their bridge is known.
func (c *checker) plainTaps(ctx context.Context) error {
	taps, err := c.m.host.PlainHeld(ctx)
	for _, dev := range taps {
		c.NICs++
		switch {
		case dev.IsOrphaned():
			c.leftOver(dev)
		case dev.Want.Source != "":
			c.link(dev)
		}
	}
	return err
}
