package backend

import (
	"context"
	"errors"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
)

// DisconnectSwitch removes a NIC's port from its switch. A switch, or port, that is not there any
// more is success.
func (m *Maker) DisconnectSwitch(ctx context.Context, dev *inventory.Device) error {
	if dev.SwitchPort.Err != nil {
		return dev.SwitchPort.Err
	}
	if dev.SwitchPort.Port == nil {
		return nil
	}
	return removePort(ctx, dev.SwitchPort.Path, dev.SwitchPort.Port.Name)
}

func removePort(ctx context.Context, sw, port string) error {
	err := inventory.WithSwitch(ctx, sw, func(ctx context.Context, c *control.Client) error { return c.RemovePort(ctx, port) })
	if errors.Is(err, control.ErrNotRunning) {
		return nil
	}
	return rtnl.IgnoreNotExist(err)
}

// SetAlias says of a NIC what it is, on its link or in its port.
func (m *Maker) SetAlias(ctx context.Context, dev *inventory.Device, alias string) error {
	switch {
	case dev.Deleted:
		return nil
	case !dev.IsSocket():
		return m.Set(dev, rtnl.Alias(alias))
	case dev.SwitchPort.Err != nil:
		return dev.SwitchPort.Err
	case dev.SwitchPort.Port == nil: // without a switch nobody could be told
		return nil
	}
	err := inventory.WithSwitch(ctx, dev.SwitchPort.Path, func(ctx context.Context, c *control.Client) error {
		return c.SetLabel(ctx, dev.SwitchPort.Port.Name, alias)
	})
	if errors.Is(err, control.ErrNotRunning) { // it has ended meanwhile
		return nil
	}
	return rtnl.IgnoreNotExist(err)
}

// Set changes settings of a NIC's link.
func (m *Maker) Set(dev *inventory.Device, attrs ...rtnl.Attr) error {
	return m.On(dev, func(nl *rtnl.Conn) error { return nl.Set(dev.Index, attrs...) })
}
