package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"vmnet/internal/network/config"
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

func (e invalid) Unwrap() error { return e.error }

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
	if err := cmp.Or(m.chooseLAN(w.Network), m.chooseMTU(w.Network)); err != nil {
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

// Replace stores a changed file of a network and applies it. change gets the network as
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
	n.Uplink = old.Uplink.Clone()
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
