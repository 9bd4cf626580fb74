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
	found, notices, t, err := m.find(ctx, w)
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
		done.Notices = append(notices, unmarked(t)...)
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

// find returns what w means, and what the user should know if that is nothing. t is the namespace,
// if it was named and exists; the caller closes it.
func (m *Manager) find(ctx context.Context, w Which) (found []attachment, notices []string, t *target, err error) {
	var gone error
	if w.Netns != "" {
		t, err = openTarget(ctx, w.Netns)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			gone, notices = err, []string{err.Error()}
		case err != nil:
			return nil, nil, nil, err
		}
	}
	_, all, err := m.look(ctx, t)
	if err != nil {
		return nil, nil, t, err
	}
	var names []string
	for _, a := range all {
		in := a.isIn(t)
		if t == nil { // its name has gone, but something else may keep it
			in = !a.claimed && (gone == nil || a.Netns == w.Netns)
		}
		switch {
		case w.ID != "" && a.ID != w.ID, w.Interface != "" && a.Interface != w.Interface:
		case in:
			found = append(found, a)
			names = append(names, fmt.Sprintf("%s (id %s)", a.Interface, a.ID))
		case t != nil && !a.claimed && a.Netns == w.Netns:
			notices = append(notices, fmt.Sprintf("%s, which was attached to netns %s, is in netns %s "+
				"(vmnet netns detach --id %s takes it away)", a.Interface, w.Netns, a.space.Name(), a.ID))
		}
	}
	if slices.ContainsFunc(found, func(a attachment) bool { return a.ID != found[0].ID }) {
		err = fmt.Errorf("%w: %s (name one with --ifname or --id)", ErrSeveral, strings.Join(names, ", "))
		return nil, nil, t, err
	}
	return found, notices, t, nil
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
