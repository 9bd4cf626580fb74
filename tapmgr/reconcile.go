package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/backend"
	"vmnet/internal/change"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Reconcile makes the host equal to the records: it removes leftovers, undoes interrupted attaches
// and completes interrupted detaches, and mends the differences that Check says it mends. It leaves
// alone what another vmnet works on, and what is on another bridge. Of the taps of which only the
// bridge is known, it removes those that no process holds, or takes them off the bridge if they
// were there before. If dry is set it changes nothing, and returns what it would do.
//
// Failures are reported in the actions; the error is set only if the present state could not be
// read.
func (m *Manager) Reconcile(ctx context.Context, dry bool) ([]nic.Action, error) {
	links, err := m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	r := &reconciler{backend.NewMending(m.host, dry), m}
	failed := r.leftOvers(ctx, links)
	var held []inventory.Device
	for _, dev := range links {
		switch v := dev.ReconcileVerdict(); {
		case v.Do == inventory.Remove && dev.IsSocket():
			r.Do(dev, "removed: nobody holds it", func() error { return r.m.host.DisconnectSwitch(ctx, &dev) })
		case v.Do == inventory.Remove:
			r.Do(dev, "removed: nobody holds it", func() error { return failed[dev.Index] })
		case v.Do == inventory.AskGuest:
			held = append(held, dev)
		case v.Do == inventory.MendAlone:
			r.openedByName(ctx, dev)
		case v.Note != "":
			r.Note(dev, v.Note)
		}
	}
	r.guests(ctx, held)
	err = errors.Join(r.plainTaps(ctx), r.Tidy(ctx))
	return r.Actions, err
}

type reconciler struct {
	backend.Mending
	m *Manager
}

// leftOvers deletes the links that no process holds. It returns the errors by link index.
func (r *reconciler) leftOvers(ctx context.Context, links []inventory.Device) map[int]error {
	if r.Dry {
		return nil
	}
	var left []inventory.Device
	for _, dev := range links {
		if dev.IsOrphaned() && !dev.IsSocket() {
			left = append(left, dev)
		}
	}
	return r.m.deleteLeftOvers(ctx, left)
}

// guests looks at the NICs of all guests that hold some of these.
func (r *reconciler) guests(ctx context.Context, held []inventory.Device) {
	for _, actions := range guest.Each(ctx, held, r.reconcileGuest) {
		r.Actions = append(r.Actions, actions...)
	}
}

func (r *reconciler) reconcileGuest(ctx, reading context.Context, nics []inventory.Device) []nic.Action {
	one := reconciler{backend.NewMending(r.m.host, r.Dry), r.m}
	one.guest(ctx, reading, nics)
	return one.Actions
}

// guest looks at the NICs that one QEMU holds, under that guest's lock.
func (r *reconciler) guest(ctx, reading context.Context, nics []inventory.Device) {
	ctx, cancel := context.WithTimeout(ctx, guest.Wait+time.Duration(len(nics))*backend.ReleaseWait)
	defer cancel()
	pid := nics[0].VMMPID()
	if pid == 0 { // it has ended since, and its NICs with it
		return
	}
	g, end, err := r.open(ctx, reading, pid, nics)
	defer end()
	if err != nil {
		if nics[0].VMMPID() == 0 { // likewise
			return
		}
		for _, dev := range nics {
			if dev.Want.Phase == nic.PhasePlugged || dev.Want.Phase == nic.PhaseDetaching {
				r.Mend(ctx, dev) // needs no lock
			}
			r.Fail(dev, err)
		}
		return
	}
	defer g.Close()
	for i, dev := range nics {
		if i > 0 || reading.Err() != nil { // it has answered, and the work since may have taken long
			var cancel context.CancelFunc
			reading, cancel = guest.WithTimeout(ctx)
			defer cancel()
		}
		r.nic(ctx, reading, g.Guest, dev)
	}
}

// nic decides about one NIC whose guest is locked.
func (r *reconciler) nic(ctx, reading context.Context, g *guest.Guest, dev inventory.Device) {
	now, err := r.m.host.Refresh(ctx, dev)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	has := false
	if err == nil {
		has, err = g.Has(reading, dev.Want.NIC)
	}
	switch {
	case err != nil && dev.VMMPID() == 0: // it has ended since
	case err != nil:
		r.Fail(dev, err)
	case !has:
		r.Do(now, "removed: the guest has no such device", func() error {
			if err := r.m.checkReleasable(ctx, &now, g); err != nil {
				return err
			}
			return r.m.release(ctx, g, &now)
		})
	default:
		if now.Want.Phase == nic.PhaseAttaching || now.Want.Phase == nic.PhaseStarting {
			r.Do(now, "kept: it is plugged, which its alias did not say yet", func() error {
				return r.m.markPlugged(ctx, g, now)
			})
		}
		if change.IsUnfinished(&now) {
			r.Do(now, "completed: a set was cut short", func() error { return change.Finish(ctx, r.m.host, g, &now) })
			return
		}
		r.Mend(ctx, now)
	}
}

// markPlugged completes a NIC whose attach was cut short after the guest had the device. A link
// that should be down may not be so yet in the guest.
func (m *Manager) markPlugged(ctx context.Context, g *guest.Guest, dev inventory.Device) error {
	if !dev.Want.LinkDown {
		return m.host.MarkPlugged(ctx, dev)
	}
	dev.Want.Phase = nic.PhaseChanging
	return change.Finish(ctx, m.host, g, &dev)
}

// plainTaps removes the taps of which only the bridge is known and that no process holds, and mends
// the others. A tap that was there before it was put on its bridge is taken off that instead.
func (r *reconciler) plainTaps(ctx context.Context) error {
	taps, err := r.m.host.PlainHeld(ctx)
	for _, dev := range taps {
		if !dev.IsOrphaned() {
			if dev.Want.Source != "" {
				r.Mend(ctx, dev)
			}
			continue
		}
		if t, _ := plaintap.Parse(dev.Alias); t.Elsewhere {
			t.Link = dev.Link
			r.Do(dev, "taken off its bridge: nobody holds it", func() error {
				return r.m.ifUnheld(dev, func() error { return r.m.host.TakeOff(t) })
			})
			continue
		}
		r.Do(dev, "removed: nobody holds it", func() error {
			return r.m.ifUnheld(dev, func() error { return rtnl.IgnoreNotExist(r.m.host.NL.Delete(dev.Index)) })
		})
	}
	return err
}

// ifUnheld runs do if still no process holds a plain tap.
func (m *Manager) ifUnheld(dev inventory.Device, do func() error) error {
	l, err := m.host.NL.LinkByIndex(dev.Index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if !dev.StillUnheld(l) {
		return fmt.Errorf("%w: interface %s", nic.ErrInUse, dev.Name)
	}
	return do()
}

// deleteLeftOvers deletes links that no process holds. It returns the errors by link index. Each
// deletion takes about 20 ms, in which the kernel waits until no CPU uses the link any more
// (synchronize_net); for a group of links it waits once. What cannot be deleted with a group is
// deleted alone.
func (m *Manager) deleteLeftOvers(ctx context.Context, links []inventory.Device) map[int]error {
	g := &grouping{m: m, links: links, former: map[int]uint32{}, deleted: map[int]bool{}}
	var refused error
	if len(links) > 1 {
		refused = m.Run.Do(ctx, g.steps())
	}
	failed := map[int]error{}
	for _, dev := range links {
		if g.deleted[dev.Index] {
			continue
		}
		err := context.Cause(ctx)
		if err == nil {
			err = m.deleteStep(&dev).Do(ctx)
		}
		if err != nil {
			failed[dev.Index] = errors.Join(err, refused)
		}
	}
	return failed
}

// grouping deletes managed links in the Manager's netns by an unused group number.
type grouping struct {
	m       *Manager
	links   []inventory.Device
	number  uint32
	former  map[int]uint32 // group by link index, of the links that were put into the new group
	deleted map[int]bool   // by link index
}

// steps look for the links' holders and delete the links in one step, so that nothing is between
// the two.
func (g *grouping) steps() []step.Step {
	return []step.Step{
		{
			Name: "group",
			Text: fmt.Sprintf("RTM_SETLINK of %d links that no process holds: IFLA_GROUP, a number that no link has",
				len(g.links)),
			Do:   g.fill,
			Undo: g.empty,
		},
		{
			Name: "delete group",
			Text: "look again who holds them; RTM_DELLINK of the group",
			Do:   g.delete,
		},
	}
}

func (g *grouping) fill(context.Context) error {
	all, err := g.m.host.NL.Groups()
	if err != nil {
		return err
	}
	g.number = unusedGroup(all)
	groupOf := map[int]uint32{}
	for number, links := range all {
		for _, l := range links {
			groupOf[l.Index] = number
		}
	}
	for _, dev := range g.links {
		former, there := groupOf[dev.Index]
		if !there {
			continue
		}
		g.former[dev.Index] = former
		if err := rtnl.IgnoreNotExist(g.m.host.NL.Set(dev.Index, rtnl.Group(g.number))); err != nil {
			return fmt.Errorf("put interface %s into group %d: %w", dev.Name, g.number, err)
		}
	}
	return nil
}

// groupBase is the lowest number that is drawn. The highest is that of the kernel's int
// (netif_set_group). People and their tools count from 0.
const groupBase = 1 << 30

func unusedGroup(used map[uint32][]*rtnl.Link) uint32 {
	for {
		if number := groupBase + rand.Uint32N(groupBase); len(used[number]) == 0 {
			return number
		}
	}
}

// empty puts the links that are still in the group back into their former ones.
func (g *grouping) empty(context.Context) error {
	all, err := g.m.host.NL.Groups()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all[g.number] {
		if _, ok := g.former[l.Index]; ok {
			errs = append(errs, g.takeOut(l))
		}
	}
	return errors.Join(errs...)
}

func (g *grouping) takeOut(l *rtnl.Link) error {
	err := rtnl.IgnoreNotExist(g.m.host.NL.Set(l.Index, rtnl.Group(g.former[l.Index])))
	if err != nil {
		return fmt.Errorf("put interface %s back into group %d: %w", l.Name, g.former[l.Index], err)
	}
	return nil
}

func (g *grouping) delete(ctx context.Context) error {
	members, err := g.deletable(ctx)
	if err != nil || len(members) == 0 {
		return err
	}
	nodes := g.m.nodesOf(members)
	if err := rtnl.IgnoreNotExist(g.m.host.NL.DeleteGroup(g.number)); err != nil {
		return fmt.Errorf("delete group %d: %w", g.number, err)
	}
	var errs []error
	for _, l := range members {
		g.deleted[l.Index] = true
		if number, ok := nodes[l.Index]; ok {
			errs = append(errs, macvlan.RemoveNode(l, number))
		}
	}
	return errors.Join(errs...)
}

// nodesOf returns the numbers of the links' device nodes, by link index.
func (m *Manager) nodesOf(links []*rtnl.Link) map[int]uint64 {
	nodes := map[int]uint64{}
	for _, l := range links {
		if l.Tun != nil {
			continue
		}
		if number, err := macvlan.Number(m.host.NS, l); err == nil {
			nodes[l.Index] = number
		}
	}
	return nodes
}

// deletable takes the links that a process holds now out of the group, and returns those that are
// left in it. What it reads last is what the kernel deletes: the group's members, with the kernel's
// word on a tap's queues. A process that opens a macvtap after its holders were looked for is not
// seen, as when one link is deleted alone.
func (g *grouping) deletable(ctx context.Context) ([]*rtnl.Link, error) {
	links, err := g.m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	known := map[int]inventory.Device{}
	for _, dev := range links {
		if dev.NetnsFile == nil {
			known[dev.Index] = dev
		}
	}
	for { // each round but the last takes a link out
		all, err := g.m.host.NL.Groups()
		if err != nil {
			return nil, err
		}
		members := all[g.number]
		out := 0
		for _, l := range members {
			if _, ok := g.former[l.Index]; !ok {
				return nil, fmt.Errorf("%w: group %d, by interface %s, which another program put there",
					nic.ErrInUse, g.number, l.Name)
			}
			if known[l.Index].StillUnheld(l) {
				continue
			}
			if err := g.takeOut(l); err != nil {
				return nil, err
			}
			out++
		}
		if out == 0 {
			return members, nil
		}
	}
}
