package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
	"vmnet/step"
)

// A network with an uplink has a port to a LAN. The bridge's alias says which, and whether what the
// host had there was moved to the bridge: until when somebody has to confirm that, and so who gives
// it back.

// snapshot is the file with what a move took.
func (m *Manager) snapshot(name string) uplink.Snapshot {
	return uplink.Snapshot{Path: filepath.Join(m.State, name+".move"), NS: m.NS}
}

func (m *Manager) mover(name string) uplink.Mover {
	return uplink.Mover{
		C: m.nl, NS: m.NS, There: m.thereFunc(name), Own: macOf(name), Snapshot: m.snapshot(name),
	}
}

// thereFunc returns a function that reads a network's bridge. If there is none, its error matches
// fs.ErrNotExist with errors.Is.
func (m *Manager) thereFunc(name string) func() (*rtnl.Link, error) {
	return func() (*rtnl.Link, error) {
		br, _, err := m.bridge(name)
		if err == nil && br == nil {
			err = fmt.Errorf("network %s: its bridge has gone: %w", name, fs.ErrNotExist)
		}
		return br, err
	}
}

// chooseLAN sets the subnet of a DHCP server on an uplink, if it is left open, to the one that the
// host has there.
func (m *Manager) chooseLAN(n *config.Network) error {
	if n.Uplink == nil || n.Uplink.VXLAN != nil || !n.DHCP || n.Subnet.IsValid() {
		return nil
	}
	u, err := uplink.Find(m.nl, n.Name, n.Uplink.Device)
	if err != nil || u.Port == nil {
		return err
	}
	h, err := m.nl.HostConfig(u.Port)
	if err != nil {
		return err
	}
	for _, p := range h.Addresses() {
		if p.Contains(n.Uplink.Range.First) {
			n.Subnet = p.Masked()
			return nil
		}
	}
	return nil
}

// How long AwaitUplink waits, less than systemd does for a service (DefaultTimeoutStartSec= in
// systemd-system.conf(5)), and how often it looks.
const (
	uplinkPatience = time.Minute
	uplinkPoll     = 100 * time.Millisecond
)

// AwaitUplink waits until the interface of a network's uplink is there, or the host's address on a
// segment: at boot, a driver may take longer than this process. It waits for a while only, and
// leaves errors to Apply. Then the manager of interfaces may make the bridge.
func (m *Manager) AwaitUplink(ctx context.Context, name string) {
	n, err := m.Dir.Read(name)
	if err != nil || n.Uplink == nil {
		return
	}
	for end := time.Now().Add(uplinkPatience); time.Now().Before(end); {
		if m.uplinkIsThere(n) {
			m.awaitManager(ctx, name)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(uplinkPoll):
		}
	}
}

// uplinkSteps put a network's uplink on its bridge, and move the host's addresses where the file
// wants that. A move that nobody has confirmed in time is taken back.
func (m *Manager) uplinkSteps(n *config.Network, st *state) (steps []step.Step, err error) {
	r := st.record
	if r.pending() {
		if m.awaited(n.Name, r) {
			return nil, nil
		}
		return m.backSteps(n.Name, r)
	}
	if n.Uplink == nil {
		return m.backSteps(n.Name, r)
	}
	if n.Uplink.VXLAN != nil {
		return m.segmentSteps(n, st)
	}
	u, err := uplink.Find(m.nl, n.Name, n.Uplink.Device)
	if err != nil {
		return nil, err
	}
	if r.uplink != "" && r.uplink != u.Name { // the file names another one now
		if steps, err = m.backSteps(n.Name, r); err != nil {
			return nil, err
		}
		r = record{}
	}
	move := n.Uplink.Move != config.NoMove
	bridge := 0
	if st.bridge != nil {
		bridge = st.bridge.Index
	}
	if err := u.Check(m.nl, bridge, move); err != nil {
		return nil, err
	}
	if !move && r.moved {
		return nil, m.refuseUnmove(n, r, st.bridge)
	}
	join, err := u.Joins(m.nl)
	if err != nil {
		return nil, err
	}
	want := r
	want.uplink, want.joined = u.Name, union(r.joined, join)
	port := u.Steps(m.nl, join, want.joined, m.thereFunc(n.Name))
	switch {
	case !move && (r.uplink == "" || len(join) > 0):
		return append(append(steps, m.markStep(n.Name, r, want)), port...), nil
	case !move:
		return append(steps, port...), nil
	case n.Uplink.Move == config.Unconfirmed && m.Confirm == 0 && !r.moved:
		return steps, nil // check says so
	}
	more, err := m.moveSteps(n, u, st.bridge, r, want, port)
	return append(steps, more...), err
}

// union returns the memberships that are in either list.
func union(a, b []uplink.Membership) []uplink.Membership {
	all := slices.Clone(a)
	for _, m := range b {
		if !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	return all
}

// refuseUnmove returns the error for a file that wants no move any more: the interface cannot have
// the host's addresses and be a port.
func (m *Manager) refuseUnmove(n *config.Network, r record, bridge *rtnl.Link) error {
	return fmt.Errorf("network %s: %w: what the host had on %s was moved to %s (write move-address: true, or "+
		"vmnet network delete %[1]s, which gives it back)", n.Name, uplink.ErrTaken, r.uplink, bridge.Name)
}

// moveSteps move what the host has on an uplink to the bridge, which gets it as a port by the steps
// port.
func (m *Manager) moveSteps(n *config.Network, u *uplink.Uplink, bridge *rtnl.Link, was, want record,
	port []step.Step,
) ([]step.Step, error) {
	needed, err := uplink.Needed(m.nl, bridge, u.Port)
	if err != nil || !needed && was.moved {
		return port, err
	}
	if !needed { // a manager has given the bridge all that at boot
		atBoot := *m
		atBoot.Confirm, want.moved = 0, true
		return append([]step.Step{atBoot.markStep(n.Name, was, want)}, port...), nil
	}
	var steps []step.Step
	if m.Confirm > 0 {
		steps = append(steps, m.snapshotStep(n, u))
	}
	want.moved = true
	steps = append(steps, m.markStep(n.Name, was, want))
	if m.Confirm > 0 {
		steps = append(steps, m.guardStep(n.Name))
	}
	return append(append(steps, port...), m.moveStep(n.Name, u)), nil
}

// moveStep is that of the mover, unless the guard has taken back already: this process may have
// been stopped meanwhile.
func (m *Manager) moveStep(name string, u *uplink.Uplink) step.Step {
	s := m.mover(name).Step(u)
	move := s.Do
	s.Do = func(ctx context.Context) error {
		_, r, err := m.there(name)
		if err != nil {
			return err
		}
		now, err := uplink.Now()
		if err == nil && (!r.moved || r.pending() && now >= r.deadline) {
			err = errors.New("the time to confirm it has passed (use a longer --confirm)")
		}
		if err != nil {
			return err
		}
		return move(ctx)
	}
	return s
}

// markStep has the bridge remember its uplink and, if something is moved, until when somebody has
// to confirm that.
func (m *Manager) markStep(name string, was, want record) step.Step {
	set := func(to record) error {
		return m.record(name, func(r *record) {
			r.uplink, r.joined, r.moved, r.deadline = to.uplink, to.joined, to.moved, to.deadline
		})
	}
	return step.Step{
		Name: "uplink-alias", Text: fmt.Sprintf("remember uplink %s in the alias of %s", want.uplink, name),
		Do: func(context.Context) error {
			if want.moved && m.Confirm > 0 {
				now, err := uplink.Now()
				if err != nil {
					return err
				}
				want.deadline = now + m.Confirm
			}
			return set(want)
		},
		Undo: func(context.Context) error {
			br, _, err := m.bridge(name)
			if err != nil || br == nil {
				return nil // it was not made, or is somebody else's
			}
			return set(was)
		},
	}
}

// unmark has the bridge forget its uplink.
func (m *Manager) unmark(name string) error {
	br, _, err := m.bridge(name)
	if err != nil || br == nil {
		return nil // it was not made, or is somebody else's
	}
	return m.record(name, func(r *record) { r.uplink, r.joined, r.moved, r.deadline = "", nil, false, 0 })
}

func (m *Manager) snapshotStep(n *config.Network, u *uplink.Uplink) step.Step {
	s := m.snapshot(n.Name)
	return step.Step{
		Name: "snapshot", Text: fmt.Sprintf("write what the host has on %s to %s", u.Name, s.Path),
		Do: func(context.Context) error {
			if u.Port == nil {
				return s.Write(u.Name, m.creating, &rtnl.HostConfig{})
			}
			h, err := m.nl.HostConfig(u.Port)
			if err != nil {
				return err
			}
			return s.Write(u.Name, m.creating, h)
		},
		Undo: func(context.Context) error { return s.Remove() },
	}
}

// guardStep starts the process that takes back. It ends when the bridge's alias no longer says that
// it should.
func (m *Manager) guardStep(name string) step.Step {
	return step.Step{
		Name: "guard",
		Text: fmt.Sprintf("in the background: take all back after %v, unless vmnet network confirm %s comes",
			m.Confirm, name),
		Do: func(ctx context.Context) error { return m.Guard(ctx, name) },
	}
}

// awaited reports whether an unconfirmed move may still be confirmed.
func (m *Manager) awaited(name string, r record) bool {
	now, err := uplink.Now()
	return err == nil && now < r.deadline && m.snapshot(name).Guarded()
}

// backSteps take a bridge's uplink off, restore what was moved from it, and delete what was made
// for it.
func (m *Manager) backSteps(name string, r record) ([]step.Step, error) {
	left, err := uplink.Left(m.nl, name)
	if err != nil {
		return nil, err
	}
	segments, err := m.segments(name, r)
	if err != nil {
		return nil, err
	}
	left = append(left, segments...)
	var steps []step.Step
	saved, err := m.snapshot(name).Read()
	if err != nil {
		return nil, err
	}
	port := r.uplink
	if port == "" && saved != nil {
		port = saved.Port
	}
	if port != "" {
		text := fmt.Sprintf("ip link set %s nomaster", port)
		if r.moved || saved != nil {
			text = "addresses, routes, rules and neighbors go back to " + port + ", by one system call"
		}
		steps = append(steps, step.Step{
			Name: "take back", Text: text,
			Do: func(context.Context) error { return m.mover(name).Back(port) },
		})
	}
	for _, l := range left {
		steps = append(steps, uplink.DeleteStep(m.nl, l))
	}
	if len(r.joined) > 0 {
		steps = append(steps, step.Step{
			Name: "vlans", Text: "end memberships of VLANs: " + uplink.FormatMemberships(r.joined),
			Do: func(context.Context) (err error) {
				for _, membership := range r.joined {
					err = errors.Join(err, membership.Leave(m.nl))
				}
				return err
			},
		})
	}
	if port != "" {
		steps = append(steps, step.Step{
			Name: "no uplink", Text: "forget uplink " + port,
			Do: func(context.Context) error { return errors.Join(m.unmark(name), m.snapshot(name).Remove()) },
		})
	}
	return steps, nil
}
