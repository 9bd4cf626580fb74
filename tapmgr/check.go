package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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
	links, err := m.inventory(ctx)
	if err != nil {
		return Checked{}, err
	}
	c := &checker{m: m, Checked: Checked{Differences: []nic.Difference{}, Notices: []string{}}}
	var held []ours
	for _, o := range links {
		if o.isHearsay() {
			if !o.isWell() {
				c.Notices = append(c.Notices, fmt.Sprintf("%s: %s; %s", o.title(), o.state(c.m.describe(o)).State, o.hearsayText()))
			}
			continue
		}
		c.NICs++
		switch {
		case !c.host(o):
		case o.stranger() != 0 && o.vmm() == 0:
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: process %d holds it, which is no QEMU", o.want.VM, o.want.NIC, o.stranger()))
		case o.vmm() == 0:
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: who holds it cannot be seen from here (as root it can)", o.want.VM, o.want.NIC))
		default:
			held = append(held, o)
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
func (c *checker) host(o ours) bool {
	switch {
	case o.isSocket() && o.unheld():
		return false // the switch is about to remove it
	case o.unheld():
		c.leftOver(o)
		return false
	case o.starts():
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was made for a guest that is about to start", o.want.VM, o.want.NIC))
		return false
	case o.busy, o.want.Phase == nic.PhaseAttaching && o.stranger() != 0:
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s is being attached", o.want.VM, o.want.NIC))
		return false
	case o.want.Phase == nic.PhaseAttaching, o.want.Phase == nic.PhaseStarting:
		return true // under the guest's lock we shall see whether it goes on
	}
	c.link(o)
	return true
}

// link compares what the host has of a NIC.
func (c *checker) link(o ours) {
	v, err := c.m.view(&o)
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s: %v", o.title(), err))
	}
	for _, f := range v.compare() {
		c.add(o, f)
	}
	for _, text := range v.advice() {
		c.Notices = append(c.Notices, o.title()+": "+text)
	}
}

// title names a NIC, or a tap of which only its bridge is known.
func (o *ours) title() string {
	if o.isPlain() {
		return o.Name
	}
	return o.want.VM + "/" + o.want.NIC
}

func (c *checker) add(o ours, f finding) {
	c.Differences = append(c.Differences, f.difference(&o))
}

// leftOver tells of a link that nobody holds.
func (c *checker) leftOver(o ours) {
	c.add(o, finding{"holder", "a guest", "nobody: it is left over", remedy{by: nic.MendReconcile, cure: reconcileCommand}})
}

func (m *Manager) checkGuest(_, reading context.Context, nics []ours) Checked {
	c := checker{m: m}
	c.guest(reading, nics)
	return c.Checked
}

// guest asks a guest whether it has its devices.
func (c *checker) guest(ctx context.Context, nics []ours) {
	vm, err := c.m.openRead(ctx, nics[0])
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s was not asked: %v", nics[0].want.VM, err))
		return
	}
	defer vm.Close()
	for _, o := range nics {
		o, err := c.m.again(ctx, o)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		has := false
		if err == nil {
			has, err = vm.has(ctx, o.want.NIC)
		}
		if err != nil {
			c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was not asked for: %v", o.want.VM, o.want.NIC, err))
			continue
		}
		byReconcile := remedy{by: nic.MendReconcile, cure: reconcileCommand}
		if o.want.Phase == nic.PhaseAttaching || o.want.Phase == nic.PhaseStarting {
			c.add(o, finding{"attach", "done", "cut short", byReconcile})
		}
		if !has {
			c.add(o, finding{"device", nic.DeviceOf(o.want.NIC, o.want.Via), "the guest has none", byReconcile})
		}
	}
}
