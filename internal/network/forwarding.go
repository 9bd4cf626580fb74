package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/step"
)

// The host forwards packets only if a setting for each IP version says so. A network that needs it
// turns it on; the bridge's alias remembers that it was off, and the last network turns it off
// again. A host that forwards IPv6 ignores router advertisements, and loses the default route that
// it has from one, unless accept_ra of that link is 2 (Documentation/networking/ip-sysctl.rst).

const (
	sysctlIP4 = "net/ipv4/ip_forward"
	sysctlIP6 = "net/ipv6/conf/all/forwarding"
)

func acceptRA(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

// sysctl reads a setting of the network's namespace. ok is false if the kernel does not have it.
func (m *Manager) sysctl(name string) (value string, ok bool, err error) {
	var text []byte
	err = m.NS.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return strings.TrimSpace(string(text)), err == nil, err
}

func (m *Manager) setSysctl(name, value string) error {
	return m.NS.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
	})
}

// setBack writes value where the setting is still what a network has set it to.
func (m *Manager) setBack(name, set, value string) error {
	now, ok, err := m.sysctl(name)
	if err != nil || !ok || now != set {
		return err
	}
	return m.setSysctl(name, value)
}

// needsForwarding reports for which IP versions the host must forward.
func needsForwarding(n *config.Network) (ip4, ip6 bool) {
	ip4 = n.NAT
	ip6 = n.NAT && n.IPv6.IsValid()
	for _, f := range n.Forwards {
		target, err := n.Target(f)
		ip4 = ip4 || err == nil && target.Is4()
		ip6 = ip6 || err == nil && target.Is6()
	}
	return ip4, ip6
}

// forwardingSteps turn on what a network needs and the host does not do.
func (m *Manager) forwardingSteps(n *config.Network) (steps []step.Step, err error) {
	ip4, ip6 := needsForwarding(n)
	if ip4 {
		off, err := m.isOff(sysctlIP4)
		if err != nil {
			return nil, err
		}
		if off {
			steps = append(steps, m.forwardingStep(n, "forward-ipv4", sysctlIP4, memory{ip4: true}))
		}
	}
	if !ip6 {
		return steps, nil
	}
	off, err := m.isOff(sysctlIP6)
	if err != nil || !off {
		return steps, err
	}
	links, err := m.advertised()
	if err != nil {
		return nil, err
	}
	return append(steps, m.forwardingStep(n, "forward-ipv6", sysctlIP6, memory{ip6: true, acceptRA: links})), nil
}

func (m *Manager) isOff(sysctl string) (bool, error) {
	value, ok, err := m.sysctl(sysctl)
	return ok && value == "0", err
}

func (m *Manager) forwardingStep(n *config.Network, name, sysctl string, was memory) step.Step {
	text := fmt.Sprintf("sysctl %s=1, remembered in the bridge's alias", strings.ReplaceAll(sysctl, "/", "."))
	for _, link := range was.acceptRA {
		text += fmt.Sprintf("; %s=2, so that the host keeps its default route",
			strings.ReplaceAll(acceptRA(link), "/", "."))
	}
	return step.Step{
		Name: name, Text: text,
		Do: func(context.Context) error {
			if err := m.remember(n.Name, func(now *memory) { *now = now.and(was) }); err != nil {
				return err
			}
			for _, link := range was.acceptRA {
				if err := m.setSysctl(acceptRA(link), "2"); err != nil {
					return err
				}
			}
			return m.setSysctl(sysctl, "1")
		},
		Undo: func(context.Context) error {
			br, r, err := m.bridge(n.Name)
			if err != nil || br == nil || !r.includes(was) {
				return err // it was not reached
			}
			return errors.Join(m.restore(was), m.remember(n.Name, func(now *memory) { *now = now.without(was) }))
		},
	}
}

// advertised returns the links by which the host has a default route from a router advertisement
// that it would lose.
func (m *Manager) advertised() (links []string, err error) {
	routes, err := m.nl.Routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if !r.RA || r.Dst != netip.PrefixFrom(netip.IPv6Unspecified(), 0) || r.Link == 0 {
			continue
		}
		l, err := m.nl.LinkByIndex(r.Link)
		if err != nil {
			continue // it has gone
		}
		value, ok, err := m.sysctl(acceptRA(l.Name))
		if err != nil {
			return nil, err
		}
		if ok && value == "1" && !slices.Contains(links, l.Name) {
			links = append(links, l.Name)
		}
	}
	return links, nil
}

// restore sets back what is remembered.
func (m *Manager) restore(was memory) (err error) {
	if was.ip4 {
		err = m.setBack(sysctlIP4, "1", "0")
	}
	if was.ip6 {
		err = errors.Join(err, m.setBack(sysctlIP6, "1", "0"))
	}
	for _, link := range was.acceptRA {
		err = errors.Join(err, m.setBack(acceptRA(link), "2", "1"))
	}
	return err
}

// passOn gives what the deleted network remembers to another one that needs the same, or sets it
// back where none does.
func (m *Manager) passOn(name string, was memory) error {
	all, err := m.bridges()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.network != name {
			return m.remember(r.network, func(now *memory) { *now = now.and(was) })
		}
	}
	return m.restore(was)
}
