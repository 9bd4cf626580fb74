package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// Apply makes a network as its file says. changed reports whether it was not so before.
func (m *Manager) Apply(ctx context.Context, name string) (n *config.Network, changed bool, err error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, false, err
	}
	n, changed, err = m.ApplyUnlocked(ctx, name)
	return n, changed, errors.Join(err, unlock())
}

// ApplyUnlocked is Apply for the server of a network, for which the process that has the lock may
// wait.
func (m *Manager) ApplyUnlocked(ctx context.Context, name string) (n *config.Network, changed bool, err error) {
	n, err = m.Dir.Read(name)
	if err != nil {
		return nil, false, err
	}
	steps, err := m.applySteps(ctx, n)
	if err != nil || len(steps) == 0 {
		return n, false, err
	}
	return n, true, m.Run.Do(ctx, steps)
}

// applySteps are those that make a network from what there is of it; none if nothing differs.
func (m *Manager) applySteps(ctx context.Context, n *config.Network) ([]step.Step, error) {
	if m.Elsewhere != nil {
		return m.stepsElsewhere(ctx, n)
	}
	st, err := m.read(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := m.conflicts(n, st); err != nil {
		return nil, err
	}
	steps, err := m.managerSteps(n)
	if err != nil {
		return nil, err
	}
	if st.bridge == nil {
		steps = append(steps, m.bridgeStep(n))
	}
	if st.bridge == nil || st.bridge.Alias == "" || n.Integrate && !st.record.integrated {
		steps = append(steps, m.aliasStep(n))
	}
	if n.MTU != 0 && (st.bridge == nil || st.bridge.MTU != n.MTU) {
		steps = append(steps, m.mtuStep(n, st))
	}
	for _, a := range st.missing {
		steps = append(steps, m.addressStep(n, a))
	}
	for _, a := range st.surplus {
		steps = append(steps, reverse(m.addressStep(n, a), "remove "+a.String()))
	}
	if st.bridge == nil || !st.bridge.Up {
		steps = append(steps, m.upStep(n))
	}
	up, err := m.uplinkSteps(n, st)
	if err != nil {
		return nil, err
	}
	steps = append(steps, up...)
	forwarding, err := m.forwardingSteps(n)
	if err != nil {
		return nil, err
	}
	steps = append(steps, forwarding...)
	if !st.sameRules {
		steps = append(steps, m.rulesStep(n, st))
	}
	integration, err := m.integrationSteps(n, st)
	if err != nil {
		return nil, err
	}
	steps = append(steps, integration...)
	return append(steps, m.serverSteps(ctx, n, st)...), nil
}

func (m *Manager) bridgeStep(n *config.Network) step.Step {
	attrs := []rtnl.Attr{rtnl.Name(n.Name), rtnl.MAC(macOf(n.Name))}
	text := fmt.Sprintf("ip link add %s address %s type bridge", n.Name, macOf(n.Name))
	if n.Uplink != nil && n.Uplink.VXLAN != nil { // the members of groups are on other hosts as well
		attrs, text = append(attrs, rtnl.BridgeNoSnooping()), text+" mcast_snooping 0"
	}
	return step.Step{
		Name: "bridge", Text: text,
		Do: func(context.Context) error {
			// The kernel chooses the index, since a bridge with a higher one than its ports counts
			// as younger than they are.
			return bridges.Explain(m.nl.Create("bridge", attrs...))
		},
		Undo: func(context.Context) error {
			br, _, err := m.bridge(n.Name)
			if err != nil || br == nil {
				return nil // it was not made, or is somebody else's
			}
			return rtnl.IgnoreNotExist(m.nl.Delete(br.Index))
		},
	}
}

func (m *Manager) aliasStep(n *config.Network) step.Step {
	return step.Step{
		Name: "alias",
		Text: fmt.Sprintf("ip link set %s alias %q", n.Name, record{network: n.Name, integrated: n.Integrate}),
		Do: func(context.Context) error {
			return m.record(n.Name, func(r *record) { r.integrated = r.integrated || n.Integrate })
		},
	}
}

// mtuStep sets the MTU of a bridge that exists: the kernel then leaves it alone, whatever its ports
// have (br_change_mtu in net/bridge/br_device.c).
func (m *Manager) mtuStep(n *config.Network, st *state) step.Step {
	set := func(mtu int) error {
		br, _, err := m.there(n.Name)
		if err != nil {
			return err
		}
		return m.nl.Set(br.Index, rtnl.MTU(mtu))
	}
	return step.Step{
		Name: "mtu", Text: fmt.Sprintf("ip link set %s mtu %d", n.Name, n.MTU),
		Do: func(context.Context) error { return set(n.MTU) },
		Undo: func(context.Context) error {
			if st.bridge == nil {
				return nil // it goes with the bridge
			}
			return set(st.bridge.MTU)
		},
	}
}

func (m *Manager) addressStep(n *config.Network, a netip.Prefix) step.Step {
	return step.Step{
		Name: "address " + a.Addr().String(), Text: fmt.Sprintf("ip addr add %s dev %s", a, n.Name),
		Do: func(context.Context) error {
			br, _, err := m.there(n.Name)
			if err != nil {
				return err
			}
			err = m.nl.AddAddr(br.Index, a)
			if a.Addr().Is6() && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EOPNOTSUPP)) {
				return fmt.Errorf(
					"%w (IPv6 is disabled here: write ipv6: none, or sysctl net.ipv6.conf.%s.disable_ipv6=0)",
					err,
					n.Name,
				)
			}
			return bridges.Explain(err)
		},
		Undo: func(context.Context) error {
			br, _, err := m.bridge(n.Name)
			if err != nil || br == nil {
				return nil // the addresses went with it
			}
			return rtnl.IgnoreNotExist(m.nl.DeleteAddr(br.Index, a))
		},
	}
}

// reverse is a step that does what the other undoes.
func reverse(s step.Step, text string) step.Step {
	return step.Step{Name: "no " + s.Name, Text: text, Do: s.Undo, Undo: s.Do}
}

func (m *Manager) upStep(n *config.Network) step.Step {
	return step.Step{
		Name: "up", Text: "ip link set " + n.Name + " up",
		Do: func(context.Context) error {
			br, _, err := m.there(n.Name)
			if err != nil {
				return err
			}
			return m.nl.Set(br.Index, rtnl.Up(true))
		},
		Undo: func(context.Context) error {
			br, _, err := m.bridge(n.Name)
			if err != nil || br == nil {
				return nil
			}
			return rtnl.IgnoreNotExist(m.nl.Set(br.Index, rtnl.Up(false)))
		},
	}
}

// rulesStep replaces the network's tables as a whole. Undone, they are as before.
func (m *Manager) rulesStep(n *config.Network, st *state) step.Step {
	var before string // the tables that are replaced, as nft lists them
	done := false
	return step.Step{
		Name: "rules", Text: fmt.Sprintf("nft -f -: replace table %s (%v)", ruleset.Table(n.Name), ruleset.Families(n)),
		Do: func(ctx context.Context) error {
			text, err := ruleset.Replace(n, st.families)
			if err != nil {
				return err
			}
			for _, family := range st.families {
				old, err := nft.ListTable(ctx, m.NS, family, ruleset.Table(n.Name))
				if err != nil {
					return err
				}
				before += old
			}
			done = true
			return nft.Apply(ctx, m.NS, text)
		},
		Undo: func(ctx context.Context) error {
			if !done {
				return nil
			}
			rules, err := nft.List(ctx, m.NS)
			if err != nil {
				return err
			}
			return nft.Apply(ctx, m.NS, ruleset.Delete(n.Name, tables(rules, n.Name))+before)
		},
	}
}

// serverSteps start the server where it should run, and end it where it should not.
func (m *Manager) serverSteps(ctx context.Context, n *config.Network, st *state) []step.Step {
	if m.Service == nil {
		return nil
	}
	differs := n.DHCP != (st.server != nil)
	if n.DHCP && st.server != nil {
		differs = !m.ServerConfig(n).IsCurrent(st.server) || st.bridge == nil || st.server.Master != st.bridge.Index
	}
	if !differs && m.Service.AtBoot(ctx, n) {
		return nil
	}
	return []step.Step{{
		Name: "server", Text: m.Service.Text(n),
		Do: func(ctx context.Context) error { return m.Service.Start(ctx, m, n) },
		Undo: func(ctx context.Context) error {
			return errors.Join(m.Service.Stop(ctx, m, n), server.Stop(ctx, m.nl, n))
		},
	}}
}
