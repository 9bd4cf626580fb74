package nsport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Reconcile removes what interrupted attaches have left, and makes the ends here ports of their
// bridges again, if those exist. If dry is set it changes nothing, and returns what it would do.
// Failures are reported in the actions; the error is set only if the present state could not be
// read.
func (m *Manager) Reconcile(ctx context.Context, dry bool) (actions []nic.Action, err error) {
	todo, err := m.unsound(ctx)
	if err != nil || len(todo) == 0 {
		return nil, err
	}
	if !dry {
		unlock, lockErr := m.lock(ctx)
		if lockErr != nil {
			return nil, lockErr
		}
		defer func() { err = errors.Join(err, unlock()) }()
		if todo, err = m.unsound(ctx); err != nil { // what was under way may be complete by now
			return nil, err
		}
	}
	for _, a := range todo {
		actions = append(actions, m.reconcile(&a, dry))
	}
	return actions, nil
}

// Reconcile is [Manager.Reconcile] for the namespace of that name or path.
func Reconcile(ctx context.Context, nameOrPath string, dry bool) ([]nic.Action, error) {
	m, err := Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.Reconcile(ctx, dry)
}

// unsound lists the attachments that are not complete, or have no bridge.
func (m *Manager) unsound(ctx context.Context) ([]attachment, error) {
	_, all, err := m.look(ctx, nil)
	return slices.DeleteFunc(all, func(a attachment) bool {
		return a.claimed || !a.Unfinished && (a.host == nil || a.host.Master != 0)
	}), err
}

func (m *Manager) reconcile(a *attachment, dry bool) nic.Action {
	act := nic.Action{Interface: a.Interface, Changed: true}
	if a.host != nil {
		act.Interface = a.host.Name
	}
	var err error
	if a.Unfinished {
		act.Action = fmt.Sprintf("removed: an interrupted vmnet netns attach left it (id %s)", a.ID)
		if !dry {
			err = m.remove(a)
		}
	} else {
		act.Action = "put back on " + a.Source
		err = m.putBack(a, dry)
		if errors.Is(err, fs.ErrNotExist) {
			act.Action = fmt.Sprintf("left alone: its bridge %s has gone (vmnet bridge create %[1]s)", a.Source)
			act.Changed, err = false, nil
		}
	}
	if err != nil {
		act.Error = err.Error()
	}
	return act
}

// Check returns what Reconcile would mend in the namespace of that name or path.
func Check(ctx context.Context, nameOrPath string) (found []nic.Difference, err error) {
	m, err := Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	todo, err := m.unsound(ctx)
	for _, a := range todo {
		d := nic.Difference{
			Interface: a.Interface, What: "bridge", Want: a.Source, MendedBy: nic.MendReconcile,
			Mend: "vmnet reconcile",
		}
		if a.host != nil {
			d.Interface = a.host.Name
		}
		if a.Unfinished {
			d.What, d.Want, d.Found = "netns attach", "complete", "interrupted, or under way"
		} else if _, err := bridges.Get(m.nl(), a.Source); errors.Is(err, fs.ErrNotExist) {
			d.MendedBy, d.Mend = nic.MendAdmin, fmt.Sprintf("vmnet bridge create %s, then vmnet reconcile", a.Source)
		}
		found = append(found, d)
	}
	return found, err
}

// putBack makes the end here a port of its bridge again.
func (m *Manager) putBack(a *attachment, dry bool) error {
	br, err := bridges.Get(m.nl(), a.Source)
	if err != nil {
		return err
	}
	cfg, err := brport.Parse(a.Port)
	if err != nil || dry {
		return err
	}
	r := a.Record
	if r.At = br.Index; len(r.String()) > alias.Max {
		r.At = 0
	}
	return bridges.AddPort(m.nl(), br, a.host, cfg, rtnl.Alias(r.String()))
}

// PutBack makes the ends here whose bridges were deleted ports of the bridges of these names that
// are there now. It looks into no other namespace. An end that was on that very bridge was taken
// off it by somebody, and is left alone. Failures are in the actions; the error is about reading
// what there is.
func (m *Manager) PutBack(ctx context.Context, names ...string) (actions []nic.Action, err error) {
	todo, err := m.lost(names)
	if err != nil || len(todo) == 0 {
		return nil, err
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if todo, err = m.lost(names); err != nil {
		return nil, err
	}
	for _, a := range todo {
		actions = append(actions, m.reconcile(&a, false))
	}
	return actions, nil
}

// lost lists the ends here that have lost a bridge of one of these names, of which there is another
// one.
func (m *Manager) lost(names []string) (found []attachment, err error) {
	links, err := m.nl().Links(Veth, 0)
	for _, l := range links {
		r, ok := ParseRecord(l.Alias)
		if !ok || r.Type != Veth || r.Unfinished || r.At == 0 || l.Master != 0 || !slices.Contains(names, r.Source) {
			continue
		}
		if br, err := bridges.Get(m.nl(), r.Source); err == nil && br.Index != r.At {
			found = append(found, attachment{Record: r, host: l})
		}
	}
	return found, err
}
