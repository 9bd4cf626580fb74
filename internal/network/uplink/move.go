package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// A Mover moves what the host has on an uplink to the network's bridge, and back.
type Mover struct {
	C  *rtnl.Conn
	NS *netns.NS // of C
	// There reads the network's bridge. If there is none, the error matches fs.ErrNotExist with
	// errors.Is.
	There func() (*rtnl.Link, error)
	// Own is the bridge's address while nothing has moved to it.
	Own net.HardwareAddr
	// Snapshot has what a move that nobody has confirmed took.
	Snapshot Snapshot
}

// moved reports whether a bridge has what was on an interface: it has its address then.
func moved(br, l *rtnl.Link) bool { return bytes.Equal(br.MAC, l.MAC) }

// Needed reports whether something is left to move from a port.
func Needed(c *rtnl.Conn, br, l *rtnl.Link) (bool, error) {
	if br == nil || l == nil || l.Master != br.Index || !moved(br, l) {
		return true, nil
	}
	h, err := c.HostConfig(l)
	return err == nil && len(h.Addresses()) > 0, err
}

// Step moves all that the host has on an uplink, and its address, to the bridge: within one system
// call, so that nothing can end this process between two changes.
func (m Mover) Step(u *Uplink) step.Step {
	return step.Step{
		Name: "move",
		Text: fmt.Sprintf("addresses, routes, rules, neighbors and MAC of %s go to %s, by one system call",
			u.Name, u.Network),
		Do: func(context.Context) error {
			br, err := m.There()
			if err != nil {
				return err
			}
			l, err := u.there(m.C)
			if err != nil {
				return err
			}
			h, err := m.C.HostConfig(l)
			if err != nil {
				return err
			}
			if err := copySettings(m.NS, l.Name, br.Name); err != nil {
				return err
			}
			if !moved(br, l) {
				if err := m.C.Quieten(br.Index); err != nil {
					return err
				}
			}
			var b rtnl.Batch
			b.Set("set the address of "+br.Name, br.Index, rtnl.MAC(l.MAC))
			b.Set("keep "+l.Name+" from IPv6", l.Index, rtnl.NoIPv6Autoconf())
			if !moved(br, l) {
				b.Set("let "+br.Name+" have IPv6 addresses", br.Index, rtnl.AddrGen(h.AddrGen))
			}
			b.Take(h, br)
			return bridges.Explain(m.C.Do(&b))
		},
		Undo: func(context.Context) error { return m.Back(u.Name) },
	}
}

// Back takes a port off the bridge, and gives it what was moved from it: within one system call.
// If nothing was moved, or the interface has gone, it does nothing. What is in the Snapshot and
// nowhere else is given back too.
func (m Mover) Back(port string) error {
	l, err := m.C.Link(port)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var b rtnl.Batch
	br, err := m.There()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		br = nil
	case err != nil:
		return err
	case l.Master != 0 && l.Master != br.Index:
		return fmt.Errorf("uplink %s: it is a port of another device now (ip link show %[1]s)", l.Name)
	default:
		if err := m.back(&b, br, l); err != nil {
			return err
		}
	}
	saved, err := m.Snapshot.Read()
	if err != nil {
		return err
	}
	if saved != nil {
		if br == nil || !moved(br, l) {
			b.Set("let "+l.Name+" have IPv6 addresses", l.Index, rtnl.AddrGen(saved.Config.AddrGen))
		}
		b.Give(&saved.Config, l)
	}
	if br != nil && moved(br, l) {
		b.Set("set the address of "+br.Name, br.Index, rtnl.MAC(m.Own))
	}
	return bridges.Explain(m.C.Do(&b))
}

// back adds what gives a port what its bridge has from it.
func (m Mover) back(b *rtnl.Batch, br, l *rtnl.Link) error {
	if l.Master == br.Index {
		b.Set("take "+l.Name+" off "+br.Name, l.Index, rtnl.Master(0))
	}
	if !moved(br, l) {
		return nil
	}
	h, err := m.C.HostConfig(br)
	if err != nil {
		return err
	}
	b.Set("bring "+l.Name+" up", l.Index, rtnl.Up(true)) // a link that is down has no routes
	b.Set("let "+l.Name+" have IPv6 addresses", l.Index, rtnl.AddrGen(h.AddrGen))
	b.Set("keep "+br.Name+" from IPv6", br.Index, rtnl.NoIPv6Autoconf())
	b.Take(h, l)
	return nil
}

// notCopied are settings of an interface that are not its own, or that a batch sets.
var notCopied = []string{"mtu", "stable_secret", "addr_gen_mode"}

// copySettings gives an interface the settings of another one: those that sysctl(8) calls
// net.ipv4.conf.NAME and net.ipv6.conf.NAME.
func copySettings(ns *netns.NS, from, to string) error {
	return ns.Do(func() error {
		for _, ip := range []string{"ipv4", "ipv6"} {
			dir := filepath.Join("/proc/sys/net", ip, "conf")
			entries, err := os.ReadDir(filepath.Join(dir, from))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			for _, e := range entries {
				if slices.Contains(notCopied, e.Name()) {
					continue
				}
				want, wantErr := os.ReadFile(filepath.Join(dir, from, e.Name()))
				has, hasErr := os.ReadFile(filepath.Join(dir, to, e.Name()))
				if wantErr != nil || hasErr != nil || bytes.Equal(want, has) {
					continue // such as one that nobody has set
				}
				err := os.WriteFile(filepath.Join(dir, to, e.Name()), want, 0o644)
				if err != nil && !errors.Is(err, fs.ErrPermission) { // some are states
					return fmt.Errorf("set %s of %s to %s: %w", e.Name(), to, strings.TrimSpace(string(want)), err)
				}
			}
		}
		return nil
	})
}
