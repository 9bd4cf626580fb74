package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"syscall"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// Wanted is a network to be created.
type Wanted struct {
	*config.Network      // an invalid Subnet, or IP of a Host, is chosen
	AutoIPv6        bool // choose IPv6, where the host has that
}

// ErrInvalid is matched by the error for a Wanted that no network can be like.
var ErrInvalid = errors.New("invalid network")

type invalid struct{ error }

func (invalid) Is(target error) bool { return target == ErrInvalid }
func (e invalid) Unwrap() error      { return e.error }

// Create stores a network's file and makes the network. What w leaves open is chosen, and set in
// its Network. That there is such a network already is an error.
func (m *Manager) Create(ctx context.Context, w Wanted) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	m.creating = true
	defer func() { m.creating = false }()
	steps, err := m.createSteps(ctx, w)
	if err == nil {
		err = m.Run.Do(ctx, steps)
	}
	return errors.Join(err, unlock())
}

func (m *Manager) createSteps(ctx context.Context, w Wanted) ([]step.Step, error) {
	if err := m.unused(w.Name); err != nil {
		return nil, err
	}
	if err := m.choose(w); err != nil {
		return nil, err
	}
	if err := w.Validate(); err != nil {
		return nil, invalid{err}
	}
	if w.Uplink != nil && w.Uplink.Move != config.NoMove && m.Confirm > 0 {
		w.Uplink.Move = config.Unconfirmed
	}
	steps, err := m.applySteps(ctx, w.Network)
	if err != nil {
		return nil, err
	}
	return append([]step.Step{m.fileStep(w.Network)}, steps...), nil
}

// choose fills in what is left open.
func (m *Manager) choose(w Wanted) error {
	if err := m.chooseLAN(w.Network); err != nil {
		return err
	}
	if err := w.CheckUplink(); err != nil {
		return invalid{err}
	}
	taken, err := m.Taken(w.Name)
	if err == nil && !w.Subnet.IsValid() && w.Uplink == nil {
		w.Subnet, err = config.FreeSubnet(taken)
	}
	if err == nil && w.AutoIPv6 && w.Uplink == nil {
		off, sysctlErr := m.ipv6Disabled()
		if err = sysctlErr; err == nil && !off {
			w.IPv6, err = config.FreeIPv6(taken)
		}
	}
	if err != nil {
		return err
	}
	if err := w.ChooseIPs(); err != nil {
		return invalid{err}
	}
	if m.Elsewhere != nil && w.MTU == 0 { // its frames cross no wire, and each costs a copy or more
		w.MTU = config.MaxMTU
	}
	return nil
}

// ipv6Disabled reports whether new links of the host have no IPv6.
func (m *Manager) ipv6Disabled() (bool, error) {
	value, ok, err := m.settings().Read("net/ipv6/conf/default/disable_ipv6")
	return err == nil && (!ok || value != "0"), err
}

// unused returns an error if there is a network of that name, or a part of one.
func (m *Manager) unused(name string) error {
	if m.Elsewhere != nil {
		return m.unusedElsewhere(name)
	}
	names, err := m.Dir.Names()
	if err != nil {
		return err
	}
	br, _, err := m.bridge(name)
	switch {
	case err != nil:
		return err
	case slices.Contains(names, name):
		return existsAlready(name, m.Dir.Path(name))
	case br != nil:
		return fmt.Errorf("network %s exists already, without its file %s (vmnet network delete %[1]s)",
			name, m.Dir.Path(name))
	}
	return nil
}

func (m *Manager) fileStep(n *config.Network) step.Step {
	return step.Step{
		Name: "file", Text: "write " + m.Dir.Path(n.Name),
		Do:   func(context.Context) error { return m.Dir.Write(n) },
		Undo: func(context.Context) error { return m.Dir.Remove(n.Name) },
	}
}

// Replace stores a changed file of a network and makes the network so. change gets the network as
// its file says; an error of it ends Replace. After any other error the file is as it was.
func (m *Manager) Replace(ctx context.Context, name string, change func(*config.Network) error) error {
	_, _, err := m.replace(ctx, name, change)
	return err
}

// Integrate is Apply after a change of the network's Integrate.
func (m *Manager) Integrate(ctx context.Context, name string, on bool) (n *config.Network, changed bool, err error) {
	return m.replace(ctx, name, func(n *config.Network) error { n.Integrate = on; return nil })
}

func (m *Manager) replace(ctx context.Context, name string, change func(*config.Network) error,
) (n *config.Network, changed bool, err error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, false, err
	}
	n, steps, err := m.replaceSteps(ctx, name, change)
	if err == nil && len(steps) > 0 {
		err = m.Run.Do(ctx, steps)
	}
	return n, len(steps) > 0, errors.Join(err, unlock())
}

func (m *Manager) replaceSteps(ctx context.Context, name string, change func(*config.Network) error,
) (*config.Network, []step.Step, error) {
	old, err := m.Dir.Read(name)
	if err != nil {
		return nil, nil, err
	}
	n := *old
	n.Hosts, n.Forwards = slices.Clone(old.Hosts), slices.Clone(old.Forwards)
	if old.Uplink != nil {
		own := *old.Uplink
		n.Uplink = &own
	}
	if err := change(&n); err != nil {
		return nil, nil, err
	}
	if err := n.Validate(); err != nil {
		return nil, nil, err
	}
	steps, err := m.applySteps(ctx, &n)
	if err != nil || reflect.DeepEqual(&n, old) {
		return &n, steps, err
	}
	file := m.fileStep(&n)
	file.Undo = func(context.Context) error { return m.Dir.Write(old) }
	return &n, append([]step.Step{file}, steps...), nil
}

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
	mac := macOf(n.Name)
	return step.Step{
		Name: "bridge", Text: fmt.Sprintf("ip link add %s address %s type bridge", n.Name, mac),
		Do: func(context.Context) error {
			// The kernel chooses the index, since a bridge with a higher one than its ports counts
			// as younger than they are.
			return bridges.Explain(m.nl.Create("bridge", rtnl.Name(n.Name), rtnl.MAC(mac)))
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
