package network

import (
	"context"
	"errors"
	"fmt"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/network/config"
	"vmnet/internal/routed"
	"vmnet/step"
)

// The host forwards packets only if a setting for each IP version says so. A network that needs it
// turns it on; the bridge's alias remembers that it was off, and the last network turns it off
// again. A host that forwards IPv6 ignores router advertisements, and loses the default route that
// it has from one, unless accept_ra of that link is 2 (Documentation/networking/ip-sysctl.rst).

func (m *Manager) settings() forwarding.Settings { return forwarding.Settings{NS: m.NS} }

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
		off, err := m.settings().IsOff(forwarding.IP4)
		if err != nil {
			return nil, err
		}
		if off {
			steps = append(steps, m.forwardingStep(n, "forward-ipv4", forwarding.IP4, memory{ip4: true}))
		}
	}
	if !ip6 {
		return steps, nil
	}
	off, err := m.settings().IsOff(forwarding.IP6)
	if err != nil || !off {
		return steps, err
	}
	links, err := m.settings().Advertised(m.nl)
	if err != nil {
		return nil, err
	}
	return append(steps, m.forwardingStep(n, "forward-ipv6", forwarding.IP6, memory{ip6: true, acceptRA: links})), nil
}

func (m *Manager) forwardingStep(n *config.Network, name, sysctl string, was memory) step.Step {
	text := fmt.Sprintf("sysctl %s=1, remembered in the bridge's alias", forwarding.Dotted(sysctl))
	for _, link := range was.acceptRA {
		text += fmt.Sprintf("; %s=2, so that the host keeps its default route",
			forwarding.Dotted(forwarding.AcceptRA(link)))
	}
	return step.Step{
		Name: name, Text: text,
		Do: func(context.Context) error {
			if err := m.remember(n.Name, func(now *memory) { *now = now.and(was) }); err != nil {
				return err
			}
			for _, link := range was.acceptRA {
				if err := m.settings().Write(forwarding.AcceptRA(link), "2"); err != nil {
					return err
				}
			}
			return m.settings().Write(sysctl, "1")
		},
		Undo: func(ctx context.Context) error {
			br, r, err := m.bridge(n.Name)
			if err != nil || br == nil || !r.includes(was) {
				return err // it was not reached
			}
			forget := func(now *memory) { *now = now.without(was) }
			return errors.Join(m.passOn(ctx, n.Name, was), m.remember(n.Name, forget))
		},
	}
}

// restore sets back what is remembered.
func (m *Manager) restore(was memory) (err error) {
	if was.ip4 {
		err = m.settings().SetBack(forwarding.IP4, "1", "0")
	}
	if was.ip6 {
		err = errors.Join(err, m.settings().SetBack(forwarding.IP6, "1", "0"))
	}
	for _, link := range was.acceptRA {
		err = errors.Join(err, m.settings().SetBack(forwarding.AcceptRA(link), "2", "1"))
	}
	return err
}

// routed returns the routed guests of the host, which need that it forwards, too. What turns
// forwarding off on all links turns it off on theirs.
func (m *Manager) routed() *routed.Host { return (&inventory.Host{NS: m.NS, NL: m.nl}).Routed() }

// passOn gives what the deleted network remembers to another one that needs the same, or to routed
// guests, or sets it back where there are none.
func (m *Manager) passOn(ctx context.Context, name string, was memory) error {
	all, err := m.bridges()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.network != name {
			return m.remember(r.network, func(now *memory) { *now = now.and(was) })
		}
	}
	taken, err := m.routed().Inherit(ctx, was.ip4, was.ip6, was.acceptRA)
	if err != nil || taken {
		return err
	}
	return m.restore(was)
}
