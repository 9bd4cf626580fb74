package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/managers"
	"vmnet/internal/network/uplink"
	"vmnet/step"
)

// kept returns the files that keep NetworkManager and systemd-networkd from a network's devices. A
// bridge that has the host's own addresses is theirs to configure.
func (m *Manager) kept(n *config.Network) []managers.File {
	if m.Managers == nil {
		return nil
	}
	var devices []string
	move := n.Uplink != nil && n.Uplink.Move != config.NoMove
	if !move {
		devices = append(devices, n.Name)
	}
	if n.DHCP {
		devices = append(devices, n.ServerLink())
	}
	switch {
	case n.Uplink == nil || move:
	case n.Uplink.VXLAN != nil:
		devices = append(devices, n.Uplink.Device)
	default:
		if u, err := uplink.Find(m.nl, n.Name, n.Uplink.Device); err == nil { // else its own step fails
			devices = append(devices, u.Name)
		}
	}
	return m.Managers.KeepOff(n.Name, devices)
}

// managerSteps write the files that are missing.
func (m *Manager) managerSteps(n *config.Network) ([]step.Step, error) {
	if m.Managers == nil {
		return nil, nil
	}
	missing, err := m.Managers.Missing(n.Name, m.kept(n))
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	return []step.Step{{
		Name: "managers", Text: "keep managers of interfaces off: write" + paths(missing),
		Do:   func(ctx context.Context) error { return m.Managers.Write(ctx, missing) },
		Undo: func(ctx context.Context) error { return m.Managers.Remove(ctx, missing) },
	}}, nil
}

func paths(files []managers.File) (text string) {
	for _, f := range files {
		text += " " + f.Path
	}
	return text
}

// endManagerSteps remove all files that a network has in the directories of managers.
func (m *Manager) endManagerSteps(name string) []step.Step {
	if m.Managers == nil {
		return nil
	}
	left := m.Managers.Left(name)
	if len(left) == 0 {
		return nil
	}
	return []step.Step{{
		Name: "managers", Text: "remove" + paths(left),
		Do: func(ctx context.Context) error { return m.Managers.Remove(ctx, left) },
	}}
}

// checkManagers adds the files that are missing.
func (m *Manager) checkManagers(n *config.Network, add func(what, want, is string)) error {
	if m.Managers == nil {
		return nil
	}
	missing, err := m.Managers.Missing(n.Name, m.kept(n))
	for _, f := range missing {
		add("managers", f.Path, "")
	}
	return err
}

// NextBoot returns what the manager of a network's uplink needs so that a move of the host's
// addresses lasts. write has it write the files where that is safe; they are in force at the next
// boot.
func (m *Manager) NextBoot(n *config.Network, write bool) (managers.Boot, error) {
	if m.Managers == nil || n.Uplink == nil || n.Uplink.Move == config.NoMove {
		return managers.Boot{}, nil
	}
	l, err := m.nl.Link(n.Uplink.Device)
	if err != nil {
		return managers.Boot{}, fmt.Errorf("uplink %s: %w", n.Uplink.Device, err)
	}
	b := m.Managers.NextBoot(n.Name, managers.Interface{Name: l.Name, Index: l.Index, MAC: l.MAC.String()})
	if !write || len(b.Files) == 0 {
		return b, nil
	}
	missing, err := m.Managers.Missing(n.Name, b.Files)
	if err == nil {
		err = managers.Host{Root: m.Managers.Root, Quiet: true}.Write(context.Background(), missing)
	}
	return b, err
}

// adopts reports whether a bridge without an alias is a network's: a manager has made it, by the
// files for the next boot.
func (m *Manager) adopts(l *rtnl.Link) bool {
	return m.Managers != nil && l.Alias == "" && l.Bridge != nil && m.Managers.Makes(l.Name)
}

// awaitManager has the manager of interfaces make a network's bridge, where it has the files for
// that. Should it fail, Apply makes the bridge.
func (m *Manager) awaitManager(ctx context.Context, name string) {
	if _, err := m.nl.Link(name); m.Managers != nil && errors.Is(err, fs.ErrNotExist) {
		_ = m.Managers.Activate(ctx, name)
	}
}

// ManagersOf returns the managers of interfaces in a namespace: nil in another one than the first
// process has, where they do not work.
func ManagersOf(ns *netns.NS) *managers.Host {
	if !isFirst(ns) {
		return nil
	}
	return &managers.Host{}
}
