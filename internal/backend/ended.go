package backend

import (
	"context"

	"vmnet/tapmgr/nic"
)

// Ended removes what was handed over by name to a guest of libvirt's, or to any where vm is empty,
// and nobody holds any more: after the guest has ended, or a NIC was unplugged. Unlike Release it
// may come late: what was made since for the guest's next start, or is about to be handed over, is
// left alone. remain tells that somebody may yet let go of something that stays then. Failures are
// told in the actions; the error is about the reading of what is.
func (m *Maker) Ended(ctx context.Context, vm string) (actions []nic.Action, remain bool, err error) {
	links, err := m.ByName(ctx, vm)
	if err != nil {
		return nil, false, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if ctx.Err() != nil {
			return r.Actions, remain, context.Cause(ctx)
		}
		if dev.IsOrphaned() {
			r.Do(dev, "removed: nobody holds it any more", func() error { return m.Delete(&dev) })
		} else {
			remain = remain || dev.StaysBehind()
		}
	}
	return r.Actions, remain, nil
}
