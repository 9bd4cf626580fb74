package uplink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// A Membership puts a bridge or one of its ports into a VLAN, which a subinterface of the bridge
// needs. The aliases of the subinterface and of the network's bridge remember those that were made
// with it.
type Membership struct {
	Link string // a bridge, or its port
	Self bool   // Link is the bridge
	VLAN int
}

// String returns the membership as an alias has it.
func (m Membership) String() string {
	kind := "port"
	if m.Self {
		kind = "self"
	}
	return fmt.Sprintf("%s:%d:%s", kind, m.VLAN, m.Link)
}

// ParseMemberships parses a list of memberships. What is not one is left out.
func ParseMemberships(list string) (all []Membership) {
	for text := range strings.SplitSeq(list, ",") {
		parts := strings.SplitN(text, ":", 3)
		if len(parts) < 3 || parts[0] != "self" && parts[0] != "port" {
			continue
		}
		vlan, err := strconv.Atoi(parts[1])
		if err == nil && parts[2] != "" {
			all = append(all, Membership{parts[2], parts[0] == "self", vlan})
		}
	}
	return all
}

// FormatMemberships returns a list for ParseMemberships.
func FormatMemberships(all []Membership) string {
	var texts []string
	for _, m := range all {
		texts = append(texts, m.String())
	}
	return strings.Join(texts, ",")
}

// keyVLANs is the key of the memberships in the alias of a subinterface.
const keyVLANs = "vlans"

// Steps put the uplink on the network's bridge, which there reads. join are from Joins; joined are
// these and those that the network has made before.
func (u *Uplink) Steps(c *rtnl.Conn, join, joined []Membership, there func() (*rtnl.Link, error)) []step.Step {
	var steps []step.Step
	if u.Own() && u.Port == nil {
		steps = append(steps, u.subinterfaceStep(c, joined))
	}
	for _, m := range join {
		steps = append(steps, m.step(c))
	}
	if u.Port == nil || u.Port.Master == 0 || !u.Port.Up {
		steps = append(steps, u.PortStep(c, there))
	}
	return steps
}

// Joins returns the memberships that a subinterface needs and that are missing. A bridge that does
// not filter VLANs needs none.
func (u *Uplink) Joins(c *rtnl.Conn) (join []Membership, err error) {
	if !u.Own() || !bridges.Filters(u.Parent) {
		return nil, nil
	}
	all, err := c.PortVLANs(0)
	if err != nil {
		return nil, err
	}
	is := func(l *rtnl.Link) bool {
		return slices.ContainsFunc(all[l.Index], func(v rtnl.VLANs) bool {
			return v.First <= u.VLAN && u.VLAN <= v.Last
		})
	}
	if !is(u.Parent) {
		join = append(join, Membership{u.Parent.Name, true, u.VLAN})
	}
	if u.Member != nil && !is(u.Member) {
		join = append(join, Membership{u.Member.Name, false, u.VLAN})
	}
	return join, nil
}

func (m Membership) step(c *rtnl.Conn) step.Step {
	text := fmt.Sprintf("bridge vlan add vid %d dev %s", m.VLAN, m.Link)
	if m.Self {
		text += " self"
	}
	return step.Step{
		Name: "vlan of " + m.Link, Text: text,
		Do: func(context.Context) error {
			l, err := c.Link(m.Link)
			switch {
			case err != nil:
				return err
			case m.Self:
				return c.AddBridgeVLANs(l.Index, m.vlans())
			case l.Port == nil:
				return fmt.Errorf("%s is not a port of a bridge any more", m.Link)
			}
			flags := l.Port.PortFlags
			return c.SetPort(l.Index, rtnl.PortChange{PortFlags: flags, From: &flags, VLANs: m.vlans()})
		},
		Undo: func(context.Context) error { return m.Leave(c) },
	}
}

func (m Membership) vlans() []rtnl.VLANs { return []rtnl.VLANs{{First: m.VLAN, Last: m.VLAN}} }

// Leave ends the membership. That it has ended already, or the link has gone, is success.
func (m Membership) Leave(c *rtnl.Conn) error {
	l, err := c.Link(m.Link)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	switch {
	case m.Self && l.Bridge != nil:
		err = c.DeleteBridgeVLANs(l.Index, m.vlans())
	case !m.Self && l.Port != nil:
		err = c.DeletePortVLANs(l.Index, m.vlans())
	}
	if err := rtnl.IgnoreNotExist(err); err != nil {
		return fmt.Errorf("leave VLAN %d of %s: %w", m.VLAN, m.Link, err)
	}
	return nil
}

func (u *Uplink) subinterfaceStep(c *rtnl.Conn, joined []Membership) step.Step {
	mark := MarkOf(u.Network) + alias.Escape(u.Name)
	if len(joined) > 0 {
		mark += " " + keyVLANs + "=" + alias.Escape(FormatMemberships(joined))
	}
	return step.Step{
		Name: "vlan", Text: fmt.Sprintf("ip link add link %s name %s type vlan id %d", u.Parent.Name, u.Name, u.VLAN),
		Do: func(context.Context) error {
			if !u.Parent.Up { // a subinterface is up only if its parent is
				if err := c.Set(u.Parent.Index, rtnl.Up(true)); err != nil {
					return fmt.Errorf("bring %s up: %w", u.Parent.Name, err)
				}
			}
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

// DeleteStep deletes a device that a network has made, with the memberships that were made with it.
func DeleteStep(c *rtnl.Conn, l *rtnl.Link) step.Step {
	return step.Step{
		Name: l.Kind + " " + l.Name, Text: "ip link del " + l.Name,
		Do: func(context.Context) error {
			for field := range strings.SplitSeq(l.Alias, " ") {
				key, value, err := alias.Field(field)
				if err != nil || key != keyVLANs {
					continue
				}
				for _, m := range ParseMemberships(value) {
					if err := m.Leave(c); err != nil {
						return err
					}
				}
			}
			return rtnl.IgnoreNotExist(c.Delete(l.Index))
		},
	}
}
