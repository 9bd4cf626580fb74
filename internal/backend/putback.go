package backend

import (
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
)

// putOnBridge makes a tap without a master a port of its bridge again, or of the one that was made
// in its place.
func (m *Maker) putOnBridge(dev *inventory.Device, br *rtnl.Link) error {
	if err := m.NL.SetQuiet(dev.Index, rtnl.MTU(br.MTU)); err != nil {
		return err
	}
	if dev.IsPlain() || dev.Want.At == br.Index {
		return bridges.AddPort(m.NL, br, dev.Link, dev.Want.PortConfig())
	}
	r := dev.Want
	r.At = br.Index
	text, err := r.Encode()
	if err != nil {
		return err
	}
	return bridges.AddPort(m.NL, br, dev.Link, dev.Want.PortConfig(), rtnl.Alias(text))
}
