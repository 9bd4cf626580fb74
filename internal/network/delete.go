package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/roster"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// Delete removes a network: its server, rules, bridge, leases and file, and what it has changed of
// the host. It needs no file, so it also removes what an interrupted verb has left. Without force
// it refuses to disconnect guests. The file goes last, so an interrupted Delete can be repeated.
func (m *Manager) Delete(ctx context.Context, name string, force bool) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	steps, err := m.deleteSteps(ctx, name, force)
	if err == nil {
		err = m.Run.Do(ctx, steps)
	}
	return errors.Join(err, unlock())
}

func (m *Manager) deleteSteps(ctx context.Context, name string, force bool) ([]step.Step, error) {
	if err := config.CheckName(name); err != nil {
		return nil, err
	}
	if m.Elsewhere != nil {
		return m.endElsewhere(ctx, name, force)
	}
	n := &config.Network{Name: name}
	names, err := m.Dir.Names()
	if err != nil {
		return nil, err
	}
	file := slices.Contains(names, name)
	br, r, err := m.bridge(name)
	if err != nil && !errors.Is(err, ErrForeign) {
		return nil, err
	}
	port, err := server.Running(m.nl, n)
	if err != nil {
		return nil, err
	}
	rules, err := nft.List(ctx, m.NS)
	if err != nil {
		return nil, err
	}
	families := tables(rules, name)
	back, err := m.backSteps(name, r)
	if err != nil {
		return nil, err
	}
	if !file && br == nil && port == nil && len(families) == 0 && len(back) == 0 {
		_, err := m.Dir.Read(name)
		return nil, err
	}
	if br != nil && !force {
		if err := m.refuseGuests(br, port, r.uplink); err != nil {
			return nil, err
		}
	}
	// The host's own addresses first: somebody may be logged in by them.
	steps := append(back, m.endServerStep(n))
	integration, err := m.endIntegrationSteps(ctx, name, rules, file, br, r)
	if err != nil {
		return nil, err
	}
	steps = append(steps, integration...)
	if len(families) > 0 {
		steps = append(steps, step.Step{
			Name: "rules", Text: "nft delete table inet " + ruleset.Table(name),
			Do: func(ctx context.Context) error { return nft.Apply(ctx, m.NS, ruleset.Delete(name, families)) },
		})
	}
	if br != nil {
		if !r.empty() {
			steps = append(steps, m.forgetStep(name, r.memory))
		}
		steps = append(steps, m.endBridgeStep(name))
	}
	steps = append(steps, m.endManagerSteps(name)...)
	return append(steps, m.forgetFilesStep(name)), nil
}

// ErrGuests is the error for a network with guests.
var ErrGuests = errors.New("guests are on it")

// refuseGuests returns an error that names the ports of a bridge other than its server's and its
// uplink.
func (m *Manager) refuseGuests(br, server *rtnl.Link, uplink string) error {
	ports, err := m.nl.Links("", br.Index)
	if err != nil {
		return err
	}
	guests, err := roster.Of(m.nl, br)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range ports {
		i := slices.IndexFunc(guests, func(g roster.Guest) bool { return g.Index == p.Index })
		switch {
		case server != nil && p.Index == server.Index, p.Name == uplink:
		case i >= 0:
			names = append(names, guests[i].Title())
		default:
			names = append(names, p.Name)
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("network %s: %w: %s (detach them first, or use --force)",
			br.Name, ErrGuests, strings.Join(names, ", "))
	}
	return nil
}

func (m *Manager) endServerStep(n *config.Network) step.Step {
	return step.Step{
		Name: "server", Text: "end " + n.ServerLink(),
		Do: func(ctx context.Context) error {
			if m.Service != nil {
				if err := m.Service.Stop(ctx, m, n); err != nil {
					return err
				}
			}
			return server.Stop(ctx, m.nl, n)
		},
	}
}

func (m *Manager) forgetStep(name string, was memory) step.Step {
	return step.Step{
		Name: "host", Text: "set forwarding back, unless another network or a routed guest needs it",
		Do: func(ctx context.Context) error {
			if err := m.passOn(ctx, name, was); err != nil {
				return err
			}
			return m.remember(name, func(now *memory) { *now = memory{} })
		},
	}
}

func (m *Manager) endBridgeStep(name string) step.Step {
	return step.Step{
		Name: "bridge", Text: "ip link del " + name,
		Do: func(ctx context.Context) error {
			br, _, err := m.bridge(name)
			if err != nil || br == nil {
				return err
			}
			if err := rtnl.IgnoreNotExist(m.nl.Delete(br.Index)); err != nil {
				return bridges.Explain(err)
			}
			_, err = m.routed().Tidy(ctx, false) // what routed guests have left to the networks
			return err
		},
	}
}

func (m *Manager) forgetFilesStep(name string) step.Step {
	return step.Step{
		Name: "file", Text: "remove " + dhcp.FilesOf(m.State, name).Leases + " and " + m.Dir.Path(name),
		Do: func(context.Context) error {
			if err := server.RemoveFiles(m.State, name); err != nil {
				return err
			}
			return m.Dir.Remove(name)
		},
	}
}
