package inventory

import (
	"context"

	"vmnet/tapmgr/nic"
)

// NICs describes those devices that a guest of that name has, or all where vm is empty.
func NICs(all []Device, vm string) []nic.NIC {
	nics := []nic.NIC{}
	for _, dev := range all {
		if vm == "" || dev.Want.VM == vm {
			nics = append(nics, dev.NIC())
		}
	}
	return nics
}

// NICs reads all NICs of a guest of that name, or of all guests where vm is empty, and those of
// which no process is seen to hold the device. With all guests' go the taps of which only the
// bridge is known.
func (h *Host) NICs(ctx context.Context, vm string) (nics, plain []nic.NIC, err error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, nil, err
	}
	all, err := h.devicesOf(ctx, links, op)
	if err != nil {
		return nil, nil, err
	}
	hidden, err := h.hidden(all, vm)
	if err != nil {
		return nil, nil, err
	}
	if vm == "" {
		plain = h.plainNICs(ctx, links, op)
	}
	return append(NICs(all, vm), hidden...), plain, nil
}

// AsHeld describes a NIC, provided that its guest holds it.
func (dev *Device) AsHeld() nic.NIC {
	r := dev.Want
	return nic.NIC{
		VM: r.VM, ID: r.NIC, Interface: dev.Name, Type: r.Type, Source: r.Source, Switch: r.Switch,
		Limits: r.Limits.String(), Mode: r.Mode, Port: r.Port, Model: r.Model, MAC: r.MAC.String(),
		Queues: r.Queues, Vhost: nic.OnOff(r.Vhost), MTU: r.GuestMTU(), State: dev.ownState(),
		UID: dev.owner(), Via: r.Via,
	}
}

// NIC describes a NIC as it is, with what its holders tell.
func (dev *Device) NIC() nic.NIC { return dev.withHolders(dev.AsHeld()) }
