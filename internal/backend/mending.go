package backend

import (
	"context"
	"fmt"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// Mending is work on several NICs: each thing that was done, or left alone, is an action.
type Mending struct {
	m       *Maker
	Dry     bool // nothing is done
	Actions []nic.Action
}

func NewMending(m *Maker, dry bool) Mending {
	return Mending{m: m, Dry: dry, Actions: []nic.Action{}}
}

func (r *Mending) Note(dev inventory.Device, text string) {
	r.Actions = append(r.Actions, nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: text})
}

// Fail tells that a NIC could not be looked into.
func (r *Mending) Fail(dev inventory.Device, err error) {
	r.Actions = append(r.Actions, nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: "not looked into", Error: err.Error()})
}

func (r *Mending) Do(dev inventory.Device, text string, f func() error) {
	a := nic.Action{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, Action: text, Changed: true}
	if !r.Dry {
		if err := f(); err != nil {
			a.Error = err.Error()
		}
	}
	r.Actions = append(r.Actions, a)
}

// Mend puts right what differs, and tells what it leaves alone. It needs no guest's lock.
func (r *Mending) Mend(ctx context.Context, dev inventory.Device) {
	v, err := r.m.View(&dev)
	switch {
	case err != nil && dev.IsUntrusted():
		r.Note(dev, fmt.Sprintf("left alone: %v", err))
	case err != nil:
		r.Fail(dev, err)
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			r.Note(dev, "left alone: "+f.Notice())
			continue
		}
		r.Do(dev, f.Done, func() error { return r.m.mend(ctx, v, f.Fix) })
	}
}

func (m *Maker) MarkPlugged(ctx context.Context, dev inventory.Device) error {
	dev.Want.Phase, dev.Want.Since = nic.PhasePlugged, 0
	alias, err := dev.Want.Encode()
	if err != nil {
		return err
	}
	return m.SetAlias(ctx, &dev, alias)
}
