package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// Checked is what Check found.
type Checked struct {
	NICs        int              `json:"nics"` // that were compared
	Differences []nic.Difference `json:"differences"`
	Notices     []string         `json:"notices"` // what could not be compared, and why
}

// Check compares what every NIC should be, which its alias says, with what it is:
// in the kernel, and in the guest where its monitor is free.
func (m *Manager) Check(ctx context.Context) (Checked, error) {
	links, err := m.host.Devices(ctx)
	if err != nil {
		return Checked{}, err
	}
	c := &checker{m: m, Checked: Checked{Differences: []nic.Difference{}, Notices: []string{}}}
	var held []inventory.Device
	for _, dev := range links {
		if dev.IsUnconfirmed() {
			if !dev.IsHealthy() {
				c.Notices = append(c.Notices, fmt.Sprintf("%s: %s; %s", dev.Title(), dev.NIC().State, dev.UnconfirmedText()))
			}
			continue
		}
		c.NICs++
		switch {
		case !c.host(dev):
		case dev.OtherHolder() != 0 && dev.VMMPID() == 0:
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: process %d holds it, which is no QEMU", dev.Want.VM, dev.Want.NIC, dev.OtherHolder()))
		case dev.VMMPID() == 0:
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: who holds it cannot be seen from here (as root it can)", dev.Want.VM, dev.Want.NIC))
		default:
			held = append(held, dev)
		}
	}
	for _, part := range eachGuest(ctx, held, m.checkGuest) {
		c.Differences = append(c.Differences, part.Differences...)
		c.Notices = append(c.Notices, part.Notices...)
	}
	return c.Checked, c.plainTaps(ctx)
}

type checker struct {
	m *Manager
	Checked
}

// host compares the link; the result is false where the guest need not be asked.
func (c *checker) host(dev inventory.Device) bool {
	switch {
	case dev.IsSocket() && dev.IsOrphaned():
		return false // the switch is about to remove it
	case dev.IsOrphaned():
		c.leftOver(dev)
		return false
	case dev.IsStarting():
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was made for a guest that is about to start", dev.Want.VM, dev.Want.NIC))
		return false
	case dev.Pending, dev.Want.Phase == nic.PhaseAttaching && dev.OtherHolder() != 0:
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s is being attached", dev.Want.VM, dev.Want.NIC))
		return false
	case dev.Want.Phase == nic.PhaseAttaching, dev.Want.Phase == nic.PhaseStarting:
		return true // under the guest's lock we shall see whether it goes on
	}
	c.link(dev)
	return true
}

// link compares what the host has of a NIC.
func (c *checker) link(dev inventory.Device) {
	v, err := c.m.host.View(&dev)
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s: %v", dev.Title(), err))
	}
	for _, f := range v.Compare() {
		c.add(dev, f)
	}
	for _, text := range v.Advice() {
		c.Notices = append(c.Notices, dev.Title()+": "+text)
	}
}

func (c *checker) add(dev inventory.Device, f inventory.Finding) {
	c.Differences = append(c.Differences, f.Difference(&dev))
}

// leftOver tells of a link that nobody holds.
func (c *checker) leftOver(dev inventory.Device) {
	c.add(dev, inventory.Finding{What: "holder", Want: "a guest", Found: "nobody: it is left over", Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand}})
}

func (m *Manager) checkGuest(_, reading context.Context, nics []inventory.Device) Checked {
	c := checker{m: m}
	c.guest(reading, nics)
	return c.Checked
}

// guest asks a guest whether it has its devices.
func (c *checker) guest(ctx context.Context, nics []inventory.Device) {
	vm, err := c.m.openRead(ctx, nics[0])
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s was not asked: %v", nics[0].Want.VM, err))
		return
	}
	defer vm.Close()
	for _, dev := range nics {
		dev, err := c.m.host.Refresh(ctx, dev)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		has := false
		if err == nil {
			has, err = vm.has(ctx, dev.Want.NIC)
		}
		if err != nil {
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was not asked for: %v", dev.Want.VM, dev.Want.NIC, err))
			continue
		}
		byReconcile := inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand}
		if dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseStarting {
			c.add(dev, inventory.Finding{What: "attach", Want: "done", Found: "cut short", Remedy: byReconcile})
		}
		if !has {
			c.add(dev, inventory.Finding{What: "device", Want: nic.DeviceOf(dev.Want.NIC, dev.Want.Via), Found: "the guest has none", Remedy: byReconcile})
		}
	}
}
