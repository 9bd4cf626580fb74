package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// deleteLeftOvers deletes links that no process holds. It returns the errors by link index. Each
// deletion takes about 20 ms, in which the kernel waits until no CPU uses the link any more
// (synchronize_net); for a group of links it waits once. What cannot be deleted with a group is
// deleted alone.
func (m *Manager) deleteLeftOvers(ctx context.Context, links []inventory.Device) map[int]error {
	g := &grouping{m: m, links: links, former: map[int]uint32{}, deleted: map[int]bool{}}
	var refused error
	if len(links) > 1 {
		refused = m.run(ctx, g.steps())
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
