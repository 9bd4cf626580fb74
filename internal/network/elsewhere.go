package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/step"
)

// An Elsewhere makes networks in namespaces of their own instead of in the Manager's.
type Elsewhere interface {
	// Steps returns those that make a network from what there is of it; none if nothing differs.
	Steps(ctx context.Context, n *config.Network) ([]step.Step, error)
	// EndSteps returns those that end a network, whatever there is of it; none if there is nothing.
	// Without force it refuses to disconnect guests.
	EndSteps(ctx context.Context, name string, force bool) ([]step.Step, error)
	// Look returns what there is of a network.
	Look(ctx context.Context, n *config.Network) (Seen, error)
	// Names returns the names of networks of which there is something, also what a killed one has
	// left.
	Names() ([]string, error)
	// Programs returns the ruleset of a network, and its programs with their arguments.
	Programs(n *config.Network) (rules string, programs []string, err error)
	// Notices says what guests lack although nothing differs.
	Notices(n *config.Network) []string
}

// Seen is what an Elsewhere has of a network.
type Seen struct {
	Running     bool
	Ports       []string // of guests
	Guests      []GuestInfo
	Differences []Difference
	Way         string    // by which IP versions guests reach the world
	Processes   []Process // of which it consists
	Log         string    // the path of the file with what they have said
}

// Process is a process of a network.
type Process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

// unusedElsewhere is unused for networks in namespaces of their own.
func (m *Manager) unusedElsewhere(name string) error {
	files, err := m.Dir.Names()
	if err != nil {
		return err
	}
	names, err := m.Elsewhere.Names()
	switch {
	case err != nil:
		return err
	case slices.Contains(files, name):
		return existsAlready(name, m.Dir.Path(name))
	case slices.Contains(names, name):
		return fmt.Errorf("network %s exists already, without its file %s (vmnet network delete %[1]s)",
			name, m.Dir.Path(name))
	}
	return nil
}

// UserNotices says so if the server of a user's network cannot ask the host's name servers, which
// the file resolv names.
func UserNotices(n *config.Network, resolv string) []string {
	return upstreamNotices(n, resolv, func(up dhcp.Upstream) string {
		switch {
		case up.Others > 0:
			return ""
		case len(up.Loopback) == 0:
			return resolv + " names no name server"
		}
		return fmt.Sprintf("%s names %s, on the host's loopback interface (let a name server listen on another "+
			"address of the host, and name that in %[1]s)", resolv, strings.Trim(fmt.Sprint(up.Loopback), "[]"))
	})
}

func existsAlready(name, path string) error {
	return fmt.Errorf("network %s exists already: see %s (change that and run vmnet network apply %[1]s, "+
		"or vmnet network delete %[1]s)", name, path)
}

// stepsElsewhere is applySteps for networks in namespaces of their own.
func (m *Manager) stepsElsewhere(ctx context.Context, n *config.Network) ([]step.Step, error) {
	if n.Uplink != nil {
		return nil, fmt.Errorf("network %s: an ordinary user has no interface of the host for its guests "+
			"(as root: vmnet network create %[1]s %s)", n.Name, n.Uplink.Flags())
	}
	seen, err := m.Elsewhere.Look(ctx, n)
	if err != nil {
		return nil, err
	}
	if !seen.Running {
		taken, err := m.Taken(n.Name)
		if err == nil {
			err = n.CheckFree(taken)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := m.forwardConflicts(n); err != nil {
		return nil, err
	}
	return m.Elsewhere.Steps(ctx, n)
}

// endElsewhere is deleteSteps for networks in namespaces of their own.
func (m *Manager) endElsewhere(ctx context.Context, name string, force bool) ([]step.Step, error) {
	files, err := m.Dir.Names()
	if err != nil {
		return nil, err
	}
	steps, err := m.Elsewhere.EndSteps(ctx, name, force)
	if err != nil {
		return nil, err
	}
	if len(steps) == 0 && !slices.Contains(files, name) {
		_, err := m.Dir.Read(name)
		return nil, err
	}
	return append(steps, m.forgetFilesStep(name)), nil
}

// compareElsewhere is compare for networks in namespaces of their own.
func (m *Manager) compareElsewhere(ctx context.Context, networks []*config.Network) (found []Difference, err error) {
	for _, n := range networks {
		seen, lookErr := m.Elsewhere.Look(ctx, n)
		err = errors.Join(err, lookErr)
		found = append(found, seen.Differences...)
	}
	return found, err
}

// infoElsewhere describes a network in namespaces of its own.
func (m *Manager) infoElsewhere(ctx context.Context, n *config.Network) (Info, Seen) {
	i := Describe(n)
	seen, err := m.Elsewhere.Look(ctx, n)
	switch {
	case err != nil:
		return broken(n.Name, err), seen
	case !seen.Running:
		i.State = StateAbsent
	case len(seen.Differences) > 0:
		i.State = StateDiffers
	default:
		i.State = StateUp
	}
	i.Ports, i.Guests = append(i.Ports, seen.Ports...), append(i.Guests, seen.Guests...)
	return i, seen
}
