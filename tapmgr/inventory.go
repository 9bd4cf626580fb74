package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// ours is a link that carries our alias, where it is, and who holds it. A NIC by a socket has no
// link: see switch_nics.go.
type ours struct {
	*rtnl.Link
	want     nic.Record // as its alias says
	formerly string     // the name that its bridge or parent device had then; empty where it has it still
	master   string     // what a tap is a port of; empty for nothing

	// A macvtap is in a netns of its own, which is reached through who has it open. One that
	// was handed over by name is in the Manager's.
	in    *procfd.File // nil: the link is in the Manager's netns
	inode uint64       // of that netns

	seat seat // of a NIC that belongs on a userspace switch
	gone bool // its device was deleted under its VMM: see dead.go

	// Of a NIC by a socket: whose its process is, and whether root or the caller says that it is there,
	// by a label of theirs or by a switch that is theirs.
	uid     int
	vouched bool

	holders []nic.Holder // as far as the caller may see, the VMM first
	allSeen bool         // of a macvtap in the Manager's netns: whoever held it would be among them
	busy    bool         // nobody holds it, since an attach is about to hand it over by its name
}

// on runs f with a netlink socket in the link's netns.
func (m *Manager) on(o *ours, f func(nl *rtnl.Conn) error) error {
	return m.within(o, func(_ *netns.NS, nl *rtnl.Conn) error { return f(nl) })
}

// within runs f with the link's netns and a netlink socket there.
func (m *Manager) within(o *ours, f func(ns *netns.NS, nl *rtnl.Conn) error) error {
	if o.in == nil {
		return f(m.ns, m.nl)
	}
	return m.withinOpen(o, func(ns *netns.NS) error {
		nl, err := rtnl.Open(ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		return f(ns, nl)
	})
}

// withinOpen runs f with the netns of a link that is not in the Manager's.
func (m *Manager) withinOpen(o *ours, f func(*netns.NS) error) error {
	ns, err := netns.OpenHeld(*o.in)
	if err != nil {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	defer ns.Close()
	if inode, err := ns.Inode(); err != nil || inode != o.inode {
		return fmt.Errorf("the netns of %s: %w", o.Name, fs.ErrNotExist)
	}
	return f(ns)
}

// set changes settings of a link of ours.
func (m *Manager) set(o *ours, attrs ...rtnl.Attr) error {
	return m.on(o, func(nl *rtnl.Conn) error { return nl.Set(o.Index, attrs...) })
}

// inventory reads all links of ours and who holds them, by guest and id.
func (m *Manager) inventory(ctx context.Context) ([]ours, error) {
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	op, err := m.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return m.inventoryOf(ctx, links, op)
}

// inventoryOf is the inventory where links and processes were looked at already.
func (m *Manager) inventoryOf(ctx context.Context, links []*rtnl.Link, op *opened) ([]ours, error) {
	own := m.records(links)
	for i := range own {
		o := &own[i]
		if o.Tun != nil {
			o.addHolders(op, op.queuesOf(ctx, o.Name))
		} else {
			m.addNodeHolders(o, op)
		}
		o.busy = o.awaitsLibvirt()
	}
	all := append(own, m.inSpaces(ctx, op)...)
	all = append(all, m.seats(ctx, all, op)...)
	all = append(all, deadNICs(op, all)...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(all, func(a, b ours) int {
		return cmp.Or(strings.Compare(a.want.VM, b.want.VM), strings.Compare(a.want.NIC, b.want.NIC))
	})
	return all, nil
}

// records are those of the links in the Manager's netns that are NICs.
func (m *Manager) records(links []*rtnl.Link) []ours {
	var found []ours
	masters := map[int]*rtnl.Link{0: nil}
	for _, l := range links {
		r, ok := nic.ParseRecord(l.Alias)
		if !ok {
			continue
		}
		if _, known := masters[l.Master]; !known {
			masters[l.Master] = m.masterOf(l)
		}
		found = append(found, m.own(l, r, masters[l.Master]))
	}
	return found
}

// seats asks the switches for the links that belong on them, and for the NICs that have no link, which it returns.
func (m *Manager) seats(ctx context.Context, links []ours, op *opened) []ours {
	names := sources(op.labels)
	for _, o := range links {
		if o.want.Switch {
			names = append(names, o.want.Source)
		}
	}
	all := m.askSwitches(ctx, names...)
	for i := range links {
		if o := &links[i]; o.want.Switch {
			o.seat = seatOf(o, all)
		}
	}
	return m.socketNICs(op, all)
}

// whole is the inventory with all processes looked into, as far as may be.
func (m *Manager) whole(ctx context.Context) (all []ours, err error) {
	err = m.lookInto(func() error { all, err = m.inventory(ctx); return err })
	return all, err
}

func isQEMU(pid int) bool {
	_, err := qemu.ByPID(pid)
	return err == nil
}

// addHolders notes who has files open that are the link's, in the order in which they were seen; but a guest's
// VMM comes first, whoever else holds one.
func (o *ours) addHolders(op *opened, files []procfd.File) {
	at := map[int]int{}
	for i, h := range o.holders {
		at[h.PID] = i
	}
	for _, f := range files {
		i, known := at[f.PID]
		if !known {
			i = len(o.holders)
			at[f.PID] = i
			o.holders = append(o.holders, nic.Holder{PID: f.PID})
		}
		o.holders[i].FDs = append(o.holders[i].FDs, f.FD)
	}
	for _, h := range o.holders {
		slices.Sort(h.FDs)
	}
	slices.SortStableFunc(o.holders, func(a, b nic.Holder) int {
		return cmp.Compare(order(op.isVMM(a.PID)), order(op.isVMM(b.PID)))
	})
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}

// own is a link of ours in the Manager's netns, with its master; nil for none.
func (m *Manager) own(l *rtnl.Link, r nic.Record, master *rtnl.Link) ours {
	o := ours{Link: l, want: r}
	if master != nil {
		o.master = master.Name
	}
	on := master
	if o.Tun == nil {
		on, _ = m.nl.LinkByIndex(l.Lower)
	}
	m.follow(&o, on)
	return o
}

// named lists the links of that NIC of guests of that name, wherever they are: two users may both have one.
func (m *Manager) named(ctx context.Context, vm, nic string) ([]ours, error) {
	all, err := m.whole(ctx)
	return slices.DeleteFunc(all, func(o ours) bool { return o.want.VM != vm || o.want.NIC != nic }), err
}

// find returns the link of a guest's NIC, wherever it is, or nil. Of several it is the one that the
// Target's process holds.
func (m *Manager) find(ctx context.Context, t nic.Target, nic string) (*ours, error) {
	all, err := m.named(ctx, t.VM, nic)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(o ours) bool {
		return t.PID != 0 && (len(all) > 1 || !o.hasLink()) && !o.isHeldBy(t.PID) || t.PID == 0 && o.isOthers()
	})
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return &all[0], nil
	}
	return nil, fmt.Errorf("%w, with NIC %s: %s (name one guest with --pid)", qemu.ErrAmbiguous, nic, whose(all))
}

// isOthers reports whether a NIC without a link is held by another user's process, than root's and the caller's: it is meant
// only where that process is named.
func (o *ours) isOthers() bool { return !o.hasLink() && !isTrusted(o.uid) }

// isHearsay reports whether nothing but the word of another user's processes says that there is a NIC: a label is
// whatever its maker wrote, for whatever guest. It is shown, with that user. Of no other guest does it decide anything.
func (o *ours) isHearsay() bool { return o.isOthers() && !o.vouched }

// isWell reports whether nothing is to be mended of a NIC by a socket, as far as its switch says.
func (o *ours) isWell() bool {
	return o.want.Phase == nic.PhasePlugged && o.seat.err == nil && !o.seatless()
}

// hearsayText names whose word it is.
func (o *ours) hearsayText() string {
	text := "nothing but"
	if len(o.holders) > 0 {
		text += fmt.Sprintf(" process %d of", o.holders[0].PID)
	}
	if o.uid == nobodys {
		return text + " nobody in particular says that it is there"
	}
	return fmt.Sprintf("%s user %d says that it is there", text, o.uid)
}

func (o *ours) isHeldBy(pid int) bool {
	return slices.ContainsFunc(o.holders, func(h nic.Holder) bool { return h.PID == pid })
}

// whose names links, and who holds them.
func whose(all []ours) string {
	var list []string
	for _, o := range all {
		text := o.Name + " of nobody who can be seen"
		if len(o.holders) > 0 {
			pid := o.holders[0].PID
			text = fmt.Sprintf("%s of process %d", o.Name, pid)
			if uid, err := procfd.RealUID(pid); err == nil {
				text += fmt.Sprintf(" (uid %d)", uid)
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// anew reads the same link and its holders again; nil where it is gone.
func (m *Manager) anew(ctx context.Context, o *ours) (*ours, error) {
	all, err := m.named(ctx, o.want.VM, o.want.NIC)
	for _, now := range all {
		if o.sameWithoutLink(&now) || o.hasLink() && now.hasLink() && now.inode == o.inode && now.Index == o.Index {
			return &now, err
		}
	}
	return nil, err
}

// findFor is find at a cost that does not grow with what else there is: by the tap's
// name, and among what the guest's process holds. sw is the switch that it is looked for in; empty for
// none. The holders of a link are not filled in.
func (m *Manager) findFor(ctx context.Context, pid int, vm, nicID, sw string) (*ours, error) {
	name, _ := nic.InterfaceName(vm, nicID)
	l, err := m.nl.Link(name)
	if err == nil {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == vm && r.NIC == nicID {
			o := m.own(l, r, m.masterOf(l))
			if r.Switch {
				o.seat = seatOf(&o, m.askNamed(ctx, r.Source))
			}
			return &o, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	op, err := m.openedBy(pid)
	if err != nil {
		return nil, err
	}
	elsewhere := m.inSpaces(ctx, op)
	if o := m.socketFor(ctx, pid, op, vm, nicID, sw); o != nil {
		return o, nil
	}
	for _, o := range append(elsewhere, deadNICs(op, elsewhere)...) {
		if o.want.VM == vm && o.want.NIC == nicID {
			return &o, nil
		}
	}
	return nil, nil
}

// again reads a link anew: it may have changed while we waited for the lock.
func (m *Manager) again(ctx context.Context, o ours) (now ours, err error) {
	now = o
	if !o.hasLink() {
		there, err := m.anew(ctx, &o)
		if there == nil {
			return o, cmp.Or(err, fmt.Errorf("NIC %s: %w", o.Name, fs.ErrNotExist))
		}
		return *there, err
	}
	err = m.on(&o, func(nl *rtnl.Conn) error {
		l, err := nl.LinkByIndex(o.Index)
		if err != nil {
			return err
		}
		want, ok := nic.ParseRecord(l.Alias)
		if !ok || want.VM != o.want.VM || want.NIC != o.want.NIC {
			return fmt.Errorf("link %s: %w", o.Name, fs.ErrNotExist)
		}
		fresh := m.own(l, want, m.masterOf(l))
		now.Link, now.want, now.formerly, now.master = l, fresh.want, fresh.formerly, fresh.master
		return nil
	})
	if err == nil && now.want.Switch {
		now.seat = seatOf(&now, m.askNamed(ctx, now.want.Source))
	}
	return now, err
}

// unheld tells that surely nobody holds the link, nor is about to.
func (o *ours) unheld() bool { return o.free() && !o.busy && !o.starts() }

// free tells that surely nobody holds the link, whatever the caller may see: a tap that is
// not persistent is there only because somebody holds it, and a persistent one
// has neither carrier nor queues without. Of a macvtap the kernel does not tell, so all
// processes must have been seen; one that is in a netns of its own is not there unheld.
func (o *ours) free() bool {
	if o.Tun == nil {
		return o.in == nil && o.allSeen && len(o.holders) == 0
	}
	return o.Tun != nil && o.Tun.Persist && !o.Tun.Attached && len(o.holders) == 0
}

// vmm returns the QEMU that holds the link; 0 where none is seen.
func (o *ours) vmm() int {
	for _, h := range o.holders {
		if isQEMU(h.PID) {
			return h.PID
		}
	}
	return 0
}

// stranger returns a process that holds the link and is no QEMU, such as a vmnet
// that works on it; 0 where none is seen.
func (o *ours) stranger() int {
	for _, h := range o.holders {
		if _, err := qemu.ByPID(h.PID); errors.Is(err, qemu.ErrNotFound) {
			return h.PID
		}
	}
	return 0
}

// heldBy tells whether a process holds the link.
func (m *Manager) heldBy(o *ours, pid int) (bool, error) {
	if !o.hasLink() {
		return o.isHeldBy(pid), nil
	}
	if o.in != nil {
		return o.in.PID == pid, nil
	}
	fds, err := m.queuesOf(o, pid)
	return len(fds) > 0, err
}

// queuesOf are a process's fds that are queues of the link, ascending.
func (m *Manager) queuesOf(o *ours, pid int) (fds []int, err error) {
	switch {
	case !o.hasLink():
		return nil, nil
	case o.in != nil:
		// None is known where we may not look.
		_ = m.withinOpen(o, func(ns *netns.NS) error { fds, err = macvtap.QueuesOf(pid, ns, o.Link); return err })
		return fds, nil
	case o.Tun == nil:
		return macvtap.QueuesOf(pid, m.ns, o.Link)
	}
	inode, err := m.ns.Inode()
	if err != nil {
		return nil, err
	}
	procfd.Of(pid, func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == o.Name && tun.InNetns(f, inode) {
			fds = append(fds, f.FD)
		}
	})
	slices.Sort(fds)
	return fds, nil
}
