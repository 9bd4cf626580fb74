package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Checked is what Check found.
type Checked struct {
	NICs        int              `json:"nics"` // that were compared
	Differences []nic.Difference `json:"differences"`
	Notices     []string         `json:"notices"` // what could not be compared, and why
}

// Check compares what every NIC should be, as its alias says, with what it is: in the kernel and,
// if the guest's monitor is free, in the guest.
func (m *Manager) Check(ctx context.Context) (Checked, error) {
	links, err := m.host.Devices(ctx)
	if err != nil {
		return Checked{}, err
	}
	c := &checker{m: m, Checked: Checked{Differences: []nic.Difference{}, Notices: []string{}}}
	var held []inventory.Device
	for _, dev := range links {
		if !dev.IsUnconfirmed() {
			c.NICs++
		}
		v := dev.CheckVerdict()
		if v.Compare {
			c.link(dev)
		}
		if v.Note != "" {
			c.Notices = append(c.Notices, v.Note)
		}
		switch v.Do {
		case inventory.Remove:
			c.leftOver(dev)
		case inventory.AskGuest:
			held = append(held, dev)
		case inventory.MendAlone:
			c.cutShort(dev)
		case inventory.LeaveAlone:
		}
	}
	for _, part := range guest.Each(ctx, held, m.checkGuest) {
		c.Differences = append(c.Differences, part.Differences...)
		c.Notices = append(c.Notices, part.Notices...)
	}
	err = errors.Join(c.plainTaps(ctx), c.routing(ctx), c.shapers())
	c.rows(ctx)
	return c.Checked, err
}

// routing adds what routed NICs that have gone have left on the host.
func (c *checker) routing(ctx context.Context) error {
	left, err := c.m.host.Routed().Tidy(ctx, true)
	for _, r := range left {
		c.add(inventory.Device{Link: &rtnl.Link{Name: r.Link}}, inventory.Finding{
			What: "routing", Want: "nothing of NICs that have gone", Found: "left: " + r.What,
			Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand},
		})
	}
	return err
}

// shapers adds the ifb devices that shaped NICs that have gone have left.
func (c *checker) shapers() error {
	left, err := ratelimit.Tidy(c.m.host.NL, true)
	for _, name := range left {
		c.add(inventory.Device{Link: &rtnl.Link{Name: name}}, inventory.Finding{
			What: inventory.Rates, Want: "nothing of NICs that have gone", Found: "left: the ifb device of one",
			Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand},
		})
	}
	return err
}

// rows adds the ports that NICs that have gone have left in the databases of Open vSwitch.
func (c *checker) rows(ctx context.Context) {
	left, err := c.m.host.TidyOVS(ctx, true, nil, c.m.host.Databases()...)
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("leftover ports of Open vSwitch were not looked for: %v", err))
	}
	for _, r := range left {
		c.add(inventory.Device{Link: &rtnl.Link{Name: r.Interface}}, inventory.Finding{
			What: "port", Want: "nothing of NICs that have gone", Found: "left: its row in Open vSwitch's database",
			Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand},
		})
	}
}

type checker struct {
	m *Manager
	Checked
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

// leftOver adds a link that no process holds.
func (c *checker) leftOver(dev inventory.Device) {
	c.add(dev, inventory.Finding{
		What: "holder", Want: "a guest", Found: "nobody: it is left over",
		Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand},
	})
}

func (m *Manager) checkGuest(_, reading context.Context, nics []inventory.Device) Checked {
	c := checker{m: m}
	c.guest(reading, nics)
	return c.Checked
}

// guest asks a guest whether it has its devices.
func (c *checker) guest(ctx context.Context, nics []inventory.Device) {
	g, err := c.m.openToRead(ctx, nics[0])
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s was not asked: %v", nics[0].Want.VM, err))
		return
	}
	defer g.Close()
	for _, dev := range nics {
		dev, err := c.m.host.Refresh(ctx, dev)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has been detached
		}
		has := false
		if err == nil {
			has, err = g.Has(ctx, dev.Want.NIC)
		}
		if err != nil {
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was not asked for: %v", dev.Want.VM, dev.Want.NIC, err))
			continue
		}
		byReconcile := inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand}
		c.cutShort(dev)
		if dev.Want.Phase == nic.PhaseChanging {
			c.add(dev, inventory.Finding{What: "set", Want: "done", Found: "cut short", Remedy: byReconcile})
		}
		if !has {
			c.add(dev, inventory.Finding{
				What: "device", Want: nic.DeviceOf(dev.Want.NIC, dev.Want.Via),
				Found: "the guest has none", Remedy: byReconcile,
			})
		}
	}
}

// cutShort adds an attach that was begun and not ended.
func (c *checker) cutShort(dev inventory.Device) {
	if dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseStarting {
		c.add(dev, inventory.Finding{
			What: "attach", Want: "done", Found: "cut short",
			Remedy: inventory.Remedy{By: nic.MendReconcile, Cure: inventory.ReconcileCommand},
		})
	}
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
