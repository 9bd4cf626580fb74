package plaintap

import (
	"errors"
	"fmt"
	"io/fs"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/stablemac"
)

// Make makes a tap on a bridge for an unknown VMM, as qemu-bridge-helper does: the kernel names it,
// it has one queue, and a vnet header only if the VMM supports one. nl is in ns, br is the bridge's
// link; owner is the uid that the tap counts for. The tap lives as long as a process holds its
// queue. Close it.
func Make(ns *netns.NS, nl *rtnl.Conn, owner int, br *rtnl.Link, port brport.Settings,
	vnetHdr bool,
) (*tun.Tap, error) {
	tap, err := tun.CreateNumbered(ns, vnetHdr)
	if err != nil {
		return nil, err
	}
	l, err := nl.Link(tap.Name)
	if err == nil {
		t := Tap{Link: l, Owner: owner, Source: br.Name, Port: port.String()}
		err = t.PutOn(nl, br, port, func() error { return nil })
	}
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, nil
}

// PutOn makes the tap a port of a bridge, and writes its owner into its alias, so that it counts
// for that user. A refused tap is soon restored: allowed is called before a frame can pass, and
// once more at the end, since the tap may have been taken off and others put on in between.
func (t Tap) PutOn(nl *rtnl.Conn, br *rtnl.Link, port brport.Settings, allowed func() error) error {
	text, err := t.CheckedAlias()
	if err != nil {
		return err
	}
	if err := bridges.CheckPort(nl, br, t.Link, port); err != nil {
		return err
	}
	var former brport.Settings
	if t.Master != 0 {
		if former, err = bridges.ReadPort(nl, br, t.Link); err != nil {
			return err
		}
	}
	if err = t.SetUp(nl, text, br.MTU); err == nil {
		err = allowed()
	}
	if err == nil {
		// The request that clears the alias also takes the tap off the bridge, so that no tap on a
		// bridge goes uncounted.
		err = bridges.AddPort(nl, br, t.Link, port, rtnl.Alias(text))
	}
	if err == nil {
		err = allowed()
	}
	if err != nil {
		if undo := restore(nl, br, t.Link, former); !errors.Is(undo, fs.ErrNotExist) {
			err = errors.Join(err, undo)
		}
	}
	return err
}

// CheckedAlias is Alias, and an error if a link cannot have so long a one.
func (t Tap) CheckedAlias() (string, error) {
	text := t.Alias()
	if len(text) > alias.Max {
		return "", fmt.Errorf(
			"the port's settings need %d bytes, and an interface alias has %d (use fewer VLAN ranges)",
			len(text), alias.Max)
	}
	return text, nil
}

// SetUp gives the tap its alias, the MAC address of the host's end, and the MTU of its bridge.
func (t Tap) SetUp(nl *rtnl.Conn, text string, mtu int) error {
	err := nl.SetQuiet(t.Index, rtnl.Alias(text), rtnl.MAC(stablemac.HostMAC(t.MAC)), rtnl.MTU(mtu))
	if err != nil {
		return fmt.Errorf("set up %s: %w", t.Name, err)
	}
	return nil
}

// restore gives a tap its former state. The tap leaves the bridge first: while it is a port, its
// MTU would become the bridge's.
func restore(nl *rtnl.Conn, br, was *rtnl.Link, former brport.Settings) error {
	if err := nl.Set(was.Index, rtnl.Alias(was.Alias), rtnl.Master(was.Master), rtnl.Up(was.Up)); err != nil {
		return err
	}
	if was.Master != 0 && former.Other == "" {
		if err := bridges.SetPort(nl, br, was, former); err != nil {
			return err
		}
	}
	return nl.Set(was.Index, rtnl.MAC(was.MAC), rtnl.MTU(was.MTU))
}
