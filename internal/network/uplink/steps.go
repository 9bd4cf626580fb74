package uplink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// The alias of a subinterface says which of the VLAN's memberships were made with it.
const (
	keySelf   = "self"   // of the bridge on which it is
	keyMember = "member" // of the port by which that bridge reaches the LAN
)

// Steps put the uplink on the network's bridge, which there reads.
func (u *Uplink) Steps(c *rtnl.Conn, there func() (*rtnl.Link, error)) ([]step.Step, error) {
	var steps []step.Step
	if u.Own() && u.Port == nil {
		join, err := u.joins(c)
		if err != nil {
			return nil, err
		}
		steps = append(steps, u.subinterfaceStep(c, join))
		for _, m := range join {
			steps = append(steps, m.step(c, u.VLAN))
		}
	}
	if u.Port == nil || u.Port.Master == 0 || !u.Port.Up {
		steps = append(steps, u.PortStep(c, there))
	}
	return steps, nil
}

// membership is one of a VLAN, which a subinterface of a bridge needs.
type membership struct {
	key  string
	link *rtnl.Link
	self bool
}

// joins returns the memberships that are missing. A bridge that does not filter VLANs needs none.
func (u *Uplink) joins(c *rtnl.Conn) (join []membership, err error) {
	if !bridges.Filters(u.Parent) {
		return nil, nil
	}
	all, err := c.PortVLANs(0)
	if err != nil {
		return nil, err
	}
	is := func(l *rtnl.Link) bool {
		for _, v := range all[l.Index] {
			if v.First <= u.VLAN && u.VLAN <= v.Last {
				return true
			}
		}
		return false
	}
	if !is(u.Parent) {
		join = append(join, membership{keySelf, u.Parent, true})
	}
	if u.Member != nil && !is(u.Member) {
		join = append(join, membership{keyMember, u.Member, false})
	}
	return join, nil
}

func (m membership) step(c *rtnl.Conn, vlan int) step.Step {
	text := fmt.Sprintf("bridge vlan add vid %d dev %s", vlan, m.link.Name)
	if m.self {
		text += " self"
	}
	vlans := []rtnl.VLANs{{First: vlan, Last: vlan}}
	return step.Step{
		Name: "vlan of " + m.link.Name, Text: text,
		Do: func(context.Context) error {
			if m.self {
				return c.AddBridgeVLANs(m.link.Index, vlans)
			}
			return c.SetPort(m.link.Index, rtnl.PortChange{
				PortFlags: m.link.Port.PortFlags, From: &m.link.Port.PortFlags, VLANs: vlans,
			})
		},
		Undo: func(context.Context) error { return m.leave(c, vlans) },
	}
}

func (m membership) leave(c *rtnl.Conn, vlans []rtnl.VLANs) error {
	if m.self {
		return rtnl.IgnoreNotExist(c.DeleteBridgeVLANs(m.link.Index, vlans))
	}
	return rtnl.IgnoreNotExist(c.DeletePortVLANs(m.link.Index, vlans))
}

func (u *Uplink) subinterfaceStep(c *rtnl.Conn, join []membership) step.Step {
	mark := MarkOf(u.Network) + alias.Escape(u.Name)
	for _, m := range join {
		mark += " " + m.key + "=" + alias.Escape(m.link.Name)
	}
	return step.Step{
		Name: "vlan", Text: fmt.Sprintf("ip link add link %s name %s type vlan id %d", u.Parent.Name, u.Name, u.VLAN),
		Do: func(context.Context) error {
			err := c.CreateWithAlias("vlan", rtnl.RandomIndex(), mark, rtnl.Name(u.Name), rtnl.Lower(u.Parent.Index),
				rtnl.VLANID(u.VLAN))
			switch {
			case errors.Is(err, syscall.EOPNOTSUPP):
				return fmt.Errorf("%w (the kernel's VLAN driver is missing or not loaded: modprobe 8021q)", err)
			case errors.Is(err, fs.ErrExist):
				return fmt.Errorf("%w (VLAN %d of %s has another subinterface: ip -d link show type vlan)", err, u.VLAN,
					u.Parent.Name)
			}
			return bridges.Explain(err)
		},
		Undo: func(context.Context) error { return u.deleteOwn(c) },
	}
}

// deleteOwn deletes the subinterface, if the network has made it.
func (u *Uplink) deleteOwn(c *rtnl.Conn) error {
	l, err := c.Link(u.Name)
	if err != nil || !strings.HasPrefix(l.Alias, MarkOf(u.Network)) {
		return rtnl.IgnoreNotExist(err)
	}
	return rtnl.IgnoreNotExist(c.Delete(l.Index))
}

// there reads the port.
func (u *Uplink) there(c *rtnl.Conn) (*rtnl.Link, error) {
	l, err := c.Link(u.Name)
	if err != nil {
		return nil, fmt.Errorf("uplink %s: %w", u.Name, err)
	}
	return l, nil
}

// PortStep makes the uplink a port of the network's bridge, which there reads.
func (u *Uplink) PortStep(c *rtnl.Conn, there func() (*rtnl.Link, error)) step.Step {
	return step.Step{
		Name: "uplink", Text: fmt.Sprintf("ip link set %s master %s up", u.Name, u.Network),
		Do: func(context.Context) error {
			br, err := there()
			if err != nil {
				return err
			}
			l, err := u.there(c)
			if err != nil {
				return err
			}
			err = bridges.AddPort(c, br, l, brport.Settings{})
			if errors.Is(err, syscall.EOPNOTSUPP) {
				return fmt.Errorf("uplink %s: %w: Wi-Fi cards and some others cannot be ports of a bridge "+
					"(vmnet attach --routed and networks with --nat work by them)", u.Name, syscall.EOPNOTSUPP)
			}
			return err
		},
		Undo: func(context.Context) error {
			br, err := there()
			if err != nil || u.Port != nil && u.Port.Master == br.Index {
				return nil // its ports left with it, or this was one before
			}
			return u.leave(c, br)
		},
	}
}

// leave takes the port off the bridge, if it is there.
func (u *Uplink) leave(c *rtnl.Conn, br *rtnl.Link) error {
	l, err := c.Link(u.Name)
	if err != nil || l.Master != br.Index {
		return rtnl.IgnoreNotExist(err)
	}
	return rtnl.IgnoreNotExist(bridges.RemovePort(c, l))
}

// Left returns the subinterfaces that a network has made, by whatever the alias of each says.
func Left(c *rtnl.Conn, network string) ([]*rtnl.Link, error) {
	all, err := c.Links("vlan", 0)
	var left []*rtnl.Link
	for _, l := range all {
		if strings.HasPrefix(l.Alias, MarkOf(network)) {
			left = append(left, l)
		}
	}
	return left, err
}

// DeleteStep deletes a subinterface of Left with the memberships that were made with it.
func DeleteStep(c *rtnl.Conn, l *rtnl.Link) step.Step {
	return step.Step{
		Name: "vlan " + l.Name, Text: "ip link del " + l.Name,
		Do: func(context.Context) error {
			vlans := []rtnl.VLANs{{First: l.VLAN, Last: l.VLAN}}
			for field := range strings.SplitSeq(l.Alias, " ") {
				key, value, err := alias.Field(field)
				if err != nil || key != keySelf && key != keyMember {
					continue
				}
				link, err := c.Link(value)
				if err == nil {
					err = membership{key, link, key == keySelf}.leave(c, vlans)
				}
				if err := rtnl.IgnoreNotExist(err); err != nil {
					return fmt.Errorf("leave VLAN %d of %s: %w", l.VLAN, value, err)
				}
			}
			return rtnl.IgnoreNotExist(c.Delete(l.Index))
		},
	}
}
