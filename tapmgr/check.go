package tapmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/internal/rtnl"
	"vmnet/macvtap"
)

// Difference is one thing that is not as it should be.
type Difference struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	What      string `json:"what"`
	Want      string `json:"want"`
	Found     string `json:"found"`
}

// Checked is what Check found.
type Checked struct {
	NICs        int          `json:"nics"` // that were compared
	Differences []Difference `json:"differences"`
	Notices     []string     `json:"notices"` // what could not be compared, and why
}

// Check compares what every NIC should be, which its alias says, with what it is:
// in the kernel, and in the guest where its monitor is free.
func (m *Manager) Check(ctx context.Context) (Checked, error) {
	links, err := m.inventory()
	if err != nil {
		return Checked{}, err
	}
	c := &checker{m: m, Checked: Checked{Differences: []Difference{}, Notices: []string{}}}
	var held []ours
	for _, o := range links {
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
	eachGuest(ctx, held, c.guest)
	return c.Checked, c.plainTaps()
}

type checker struct {
	m *Manager
	Checked
}

func (c *checker) compare(o ours, what, want, found string) {
	if want != found {
		c.Differences = append(c.Differences, Difference{o.want.VM, o.want.NIC, o.Name, what, want, found})
	}
}

// host compares the link; the result is false where the guest need not be asked.
func (c *checker) host(o ours) bool {
	switch {
	case o.isSocket() && o.unheld():
		return false // the switch is about to remove it
	case o.unheld():
		c.compare(o, "holder", "a guest", "nobody: it is left over")
		return false
	case o.starts():
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s was made for a guest that is about to start", o.want.VM, o.want.NIC))
		return false
	case o.busy, o.want.Phase == attaching && o.stranger() != 0:
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s is being attached", o.want.VM, o.want.NIC))
		return false
	case o.want.Phase == attaching, o.want.Phase == starting:
		return true // under the guest's lock we shall see whether it goes on
	case o.want.Phase == detaching:
		c.compare(o, "detach", "done", "the guest has not let go of it")
		return true
	}
	c.compare(o, "link", "up", upDown(o.Up))
	switch {
	case o.want.Switch:
		c.seat(o)
	case o.want.Type == TypeTap:
		c.tap(o)
	default:
		c.macvtap(o)
	}
	if len(o.holders) > 0 && !o.isSocket() {
		c.compare(o, "queues", strconv.Itoa(o.want.Queues), strconv.Itoa(len(o.holders[0].FDs)))
	}
	return true
}

func (c *checker) tap(o ours) {
	c.compare(o, "bridge", o.want.Source, o.master)
	if o.want.Via == ViaLibvirt {
		c.compare(o, "lifetime", "that of its guest", lifetime(o))
	}
	c.compare(o, "host MAC", hostMAC(o.want.MAC).String(), o.MAC.String())
	if br, err := bridge.Get(c.m.nl, o.want.Source); err == nil {
		c.compare(o, "MTU", strconv.Itoa(br.MTU), strconv.Itoa(o.MTU))
		c.port(o, br)
	}
}

// seat compares the port of a userspace switch.
func (c *checker) seat(o ours) {
	if o.seat.err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: its port was not compared: %v", o.want.VM, o.want.NIC, o.seat.err))
		return
	}
	if o.Tun != nil {
		c.compare(o, "bridge", "", o.master)
		c.compare(o, "host MAC", hostMAC(o.want.MAC).String(), o.MAC.String())
		c.compare(o, "MTU", strconv.Itoa(o.want.guestMTU()), strconv.Itoa(o.MTU))
	}
	want := "a port of switch " + o.want.Source
	if o.seatless() {
		cure := cureOfLost
		if o.Tun != nil {
			cure = "vmnet reconcile, once the switch runs"
		}
		c.compare(o, "switch", want, fmt.Sprintf("none: it has ended, or lost it (%s)", cure))
		return
	}
	if o.seat.port == nil {
		return
	}
	c.compare(o, "settings", settingsText(o.want.switchPort()), settingsText(o.seat.port.Config))
}

// settingsText is a switch's port's settings, for comparison.
func settingsText(cfg vswitch.PortConfig) string {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func lifetime(o ours) string {
	if o.Tun.Persist {
		return "persistent"
	}
	return "that of its guest"
}

func (c *checker) port(o ours, br *rtnl.Link) {
	if o.Master != br.Index {
		return
	}
	found, err := bridge.ReadPort(c.m.nl, br, o.Link)
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s/%s: its port was not compared: %v", o.want.VM, o.want.NIC, err))
		return
	}
	c.compare(o, "port", o.want.port().On(br).String(), found.String())
}

func (c *checker) macvtap(o ours) {
	c.compare(o, "lower", o.want.Source, c.m.lowerName(&o))
	c.compare(o, "mode", o.want.Mode, macvtap.ModeName(o.Link))
	c.compare(o, "host MAC", o.want.MAC.String(), o.MAC.String())
	c.compare(o, "rx filter", o.want.RxFilter, rxFilter(&o))
}

// rxFilter is what a device takes in. Of one that mirrors its guest both can be right: see show.
func rxFilter(o *ours) string {
	switch {
	case o.want.RxFilter == RxMirror:
		return RxMirror
	case o.AllMulti:
		return RxAllMulti
	}
	return RxNone
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// guest asks a guest whether it has its devices.
func (c *checker) guest(ctx context.Context, nics []ours) {
	ctx, cancel := monitorTimeout(ctx)
	defer cancel()
	vm, err := c.m.openRead(ctx, nics[0])
	if err != nil {
		c.Notices = append(c.Notices, fmt.Sprintf("%s was not asked: %v", nics[0].want.VM, err))
		return
	}
	defer vm.Close()
	for _, o := range nics {
		o, err := c.m.again(o)
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
		if o.want.Phase == attaching || o.want.Phase == starting {
			c.compare(o, "attach", "done", "cut short")
		}
		if !has {
			c.compare(o, "device", deviceID(o.want.NIC), "the guest has none")
		}
	}
}
