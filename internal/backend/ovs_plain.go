package backend

import (
	"context"
	"errors"
	"fmt"

	"vmnet/bridge/brport"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/ovs"
	"vmnet/tapmgr/nic"
)

// MakePlainOVS is [plaintap.Make] for a bridge of Open vSwitch, whose database has that socket. A
// bridge that forwards in user space completes no checksums, so the tap has no vnet header there.
// OVN does not know the port: nothing says which guest it is.
func (m *Maker) MakePlainOVS(ctx context.Context, bridge, ovsdb string, port brport.Settings,
	vnetHdr bool,
) (*tun.Tap, error) {
	p, err := m.placeOf(ctx, nic.Spec{Bridge: bridge, OVSDB: ovsdb})
	if err != nil {
		return nil, err
	}
	on, ok := p.(*ovsPlace)
	if !ok {
		return nil, fmt.Errorf("%s is no bridge of Open vSwitch", bridge)
	}
	if err := ovs.CheckSettings(port); err != nil {
		return nil, err
	}
	tap, err := tun.CreateNumbered(m.NS, vnetHdr && on.br.Datapath != ovs.Userspace)
	if err != nil {
		return nil, err
	}
	l, err := m.NL.Link(tap.Name)
	if err == nil {
		t := plaintap.Tap{
			Link: l, Owner: m.Owner, Source: on.br.Name, Port: port.String(), OVS: true, OVSDB: ovsdb,
		}
		err = m.putPlainOnOVS(ctx, t, on, port)
	}
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, nil
}

// putPlainOnOVS makes a tap a port. The alias comes first: it counts for the owner, and has watch
// remove the row when the tap has gone.
func (m *Maker) putPlainOnOVS(ctx context.Context, t plaintap.Tap, p *ovsPlace, port brport.Settings) error {
	text, err := t.CheckedAlias()
	if err != nil {
		return err
	}
	if err := t.SetUp(m.NL, text, p.link.MTU); err != nil {
		return err
	}
	owner, err := m.OVSOwner(nic.Record{Owner: t.Owner}, t.Index)
	if err != nil {
		return err
	}
	return m.UseOVS(ctx, t.OVSDB, func(c *ovs.Conn) error {
		err := c.Add(ctx, p.br, ovs.Config{Name: t.Name, Settings: port, Owner: owner})
		if err == nil {
			err = m.NL.Set(t.Index, rtnl.Up(true))
		}
		if err != nil {
			err = errors.Join(err, c.Withdraw(ctx, t.Name, owner))
		}
		return err
	})
}
