package nsport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Which says which attachment is meant: by its ID, or by the namespace and, if that has several, by
// the interface.
type Which struct {
	Netns     string // as in a Spec
	Interface string
	ID        string
}

// ErrSeveral is the error for a namespace with several attachments.
var ErrSeveral = errors.New("it has several interfaces")

// Detached is the result of a detach.
type Detached struct {
	Removed []Info // none if there was no such attachment
	Notices []string
}

// Detach takes an interface away from a namespace. That there is none is success.
func (m *Manager) Detach(ctx context.Context, w Which) (done Detached, err error) {
	if w.Netns == "" && w.ID == "" {
		return done, step.WithStage(nic.ErrInvalid, errors.New("no network namespace and no id is named"))
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	found, t, err := m.find(ctx, w)
	if t != nil {
		defer t.close()
	}
	if err != nil {
		return done, fmt.Errorf("detach %s: %w", w, err)
	}
	var steps []step.Step
	for _, a := range found {
		done.Removed = append(done.Removed, m.describe(a))
		steps = append(steps, step.Step{
			Name: "delete " + a.ID,
			Text: "RTM_DELLINK " + a.linkName(),
			Do:   func(context.Context) error { return m.remove(&a) },
		})
	}
	if len(steps) == 0 {
		done.Notices = unmarked(t)
	}
	if len(steps) > 0 || m.DryRun {
		err = m.Run.Do(ctx, steps)
	}
	if err != nil {
		return Detached{}, fmt.Errorf("detach %s: %w", w, err)
	}
	return done, nil
}

// String returns what is meant, for people.
func (w Which) String() string {
	if w.Netns == "" {
		return "id " + w.ID
	}
	return "netns " + w.Netns
}

// find returns what w means. t is the namespace, if it was named and exists; the caller closes it.
func (m *Manager) find(ctx context.Context, w Which) (found []attachment, t *target, err error) {
	gone := false
	if w.Netns != "" {
		t, err = openTarget(ctx, w.Netns)
		if gone = errors.Is(err, fs.ErrNotExist); err != nil && !gone {
			return nil, nil, err
		}
	}
	_, all, err := m.look(ctx, t)
	if err != nil {
		return nil, t, err
	}
	ids := map[string]bool{}
	for _, a := range all {
		var in bool
		switch {
		case w.Netns == "":
			in = !a.claimed
		case gone: // its name has gone, but something else keeps it
			in = !a.claimed && a.Netns == w.Netns
		default:
			in = a.isIn(t)
		}
		if in && (w.ID == "" || a.ID == w.ID) && (w.Interface == "" || a.Interface == w.Interface) {
			found = append(found, a)
			ids[a.ID] = true
		}
	}
	if len(ids) > 1 {
		var names []string
		for _, a := range found {
			names = append(names, fmt.Sprintf("%s (id %s)", a.Interface, a.ID))
		}
		return nil, t, fmt.Errorf(
			"%w: %s (name one with --ifname or --id)",
			ErrSeveral,
			strings.Join(names, ", "),
		)
	}
	return found, t, nil
}

// unmarked names the macvlans and ipvlans in a namespace that may once have been attachments: the
// users of the namespace can change the alias.
func unmarked(t *target) (notices []string) {
	if t == nil {
		return nil
	}
	for _, kind := range []string{Macvlan, IPVlan} {
		links, err := t.nl.Links(kind, 0)
		if err != nil {
			continue
		}
		for _, l := range links {
			if _, ours := ParseRecord(l.Alias); !ours && l.LowerNS >= 0 {
				notices = append(notices, fmt.Sprintf("netns %s has a %s %s without vmnet's alias, which stays",
					t.name, kind, l.Name))
			}
		}
	}
	return notices
}

// linkName returns the link that is deleted.
func (a *attachment) linkName() string {
	if a.host != nil {
		return a.host.Name
	}
	return fmt.Sprintf("%s in netns %s", a.end.Name, a.space.Name())
}

// remove deletes the link of an attachment, which may have gone. It is read again before: another
// program may have made another link of that index since.
func (m *Manager) remove(a *attachment) error {
	if a.host != nil {
		l, err := m.nl().LinkByIndex(a.host.Index)
		if err != nil {
			return rtnl.IgnoreNotExist(err)
		}
		if r, ok := ParseRecord(l.Alias); !ok || r.ID != a.ID {
			return fmt.Errorf("%s is something else now", l.Name)
		}
		return explain(rtnl.IgnoreNotExist(m.nl().Delete(l.Index)))
	}
	l, err := m.nl().LinkIn(a.space.ID, a.end.Index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if l.Kind != a.end.Kind || l.Lower != a.end.Lower {
		return fmt.Errorf("%s is something else now", l.Name)
	}
	return explain(rtnl.IgnoreNotExist(m.nl().DeleteIn(a.space.ID, l.Index)))
}

func explain(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}

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
		unlock, err := m.lock(ctx)
		if err != nil {
			return nil, err
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
