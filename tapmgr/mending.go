package tapmgr

import (
	"context"
	"fmt"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// mending is work on several NICs: each thing that was done, or left alone, is an action.
type mending struct {
	m       *Manager
	dry     bool // nothing is done
	actions []nic.Action
}

func newMending(m *Manager, dry bool) mending {
	return mending{m: m, dry: dry, actions: []nic.Action{}}
}

func (r *mending) note(dev inventory.Device, text string) {
	r.actions = append(r.actions, nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: text})
}

// fail tells that a NIC could not be looked into.
func (r *mending) fail(dev inventory.Device, err error) {
	r.actions = append(r.actions, nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: "not looked into", Error: err.Error()})
}

func (r *mending) do(dev inventory.Device, text string, f func() error) {
	a := nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: text, Changed: true}
	if !r.dry {
		if err := f(); err != nil {
			a.Error = err.Error()
		}
	}
	r.actions = append(r.actions, a)
}

// mend puts right what differs, and tells what it leaves alone. It needs no guest's lock.
func (r *mending) mend(ctx context.Context, dev inventory.Device) {
	v, err := r.m.host.View(&dev)
	switch {
	case err != nil && dev.IsUntrusted():
		r.note(dev, fmt.Sprintf("left alone: %v", err))
	case err != nil:
		r.fail(dev, err)
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			r.note(dev, "left alone: "+f.Notice())
			continue
		}
		r.do(dev, f.Done, func() error { return r.m.mend(ctx, v, f.Fix) })
	}
}

func (m *Manager) markPlugged(ctx context.Context, dev inventory.Device) error {
	dev.Want.Phase, dev.Want.Since = nic.PhasePlugged, 0
	alias, err := dev.Want.Encode()
	if err != nil {
		return err
	}
	return m.host.SetAlias(ctx, &dev, alias)
}
