package tapmgr

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"vmnet/internal/fdlabel"
	"vmnet/internal/netns"
	"vmnet/internal/procfd"
	"vmnet/internal/qemu"
	"vmnet/internal/rtnl"
	"vmnet/internal/tun"
	"vmnet/macvtap"
)

// ours is a link that carries our alias, where it is, and who holds it. A NIC by a socket has no
// link: see switch_nics.go.
type ours struct {
	*rtnl.Link
	want     record // as its alias says
	formerly string // the name that its bridge or parent device had then; empty where it has it still
	master   string // what a tap is a port of; empty for nothing

	// A macvtap is in a netns of its own, which is reached through who has it open. One that
	// was handed over by name is in the Manager's.
	in    *procfd.File // nil: the link is in the Manager's netns
	inode uint64       // of that netns

	seat seat // of a NIC that belongs on a userspace switch

	holders []Holder // as far as the caller may see, the VMM first
	allSeen bool     // of a macvtap in the Manager's netns: whoever held it would be among them
	busy    bool     // nobody holds it, since an attach is about to hand it over by its name
}

// Holder is a process that holds queues of a tap, or the netns that a macvtap is in. What
// is alive and what is left over is told by that alone, never by a guest's name.
type Holder struct {
	PID int   `json:"pid"`
	FDs []int `json:"fds"` // its queues, ascending
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
	ns, err := netns.OpenHeld(*o.in)
	if err != nil {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	defer ns.Close()
	if inode, err := ns.Inode(); err != nil || inode != o.inode {
		return fmt.Errorf("the netns of %s: %w", o.Name, fs.ErrNotExist)
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	return f(ns, nl)
}

// set changes settings of a link of ours.
func (m *Manager) set(o *ours, attrs ...rtnl.Attr) error {
	return m.on(o, func(nl *rtnl.Conn) error { return nl.Set(o.Index, attrs...) })
}

// inventory reads all links of ours and who holds them, by guest and id.
func (m *Manager) inventory() ([]ours, error) {
	inode, err := m.ns.Inode()
	if err != nil {
		return nil, err
	}
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	byName := map[string]*ours{}
	for i := range links {
		byName[links[i].Name] = &links[i]
	}
	var queues, spaces, labels []procfd.File
	nodes := map[int][]int{} // fds that may be queues of a macvtap, by process
	err = procfd.All(func(f procfd.File) {
		if _, ok := fdlabel.Of(f); ok {
			labels = append(labels, f)
		} else if tun.LooksLikeQueue(f) {
			queues = append(queues, f)
		} else if _, ok := netns.InodeOf(f); ok {
			spaces = append(spaces, f)
		} else if macvtap.LooksLikeQueue(f) {
			nodes[f.PID] = append(nodes[f.PID], f.FD)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, f := range queues {
		if o := byName[tun.InterfaceOf(f)]; o != nil && tun.InNetns(f, inode) && f.Still() {
			o.addHolder(f)
		}
	}
	spaces = slices.DeleteFunc(spaces, func(f procfd.File) bool { return nodes[f.PID] == nil && !isQEMU(f.PID) })
	elsewhere := m.inSpaces(spaces)
	m.addNodeHolders(links, elsewhere, nodes)
	for i := range links {
		links[i].busy = links[i].awaitsLibvirt()
	}
	links = append(links, elsewhere...)
	links = append(links, m.seats(links, labels)...)
	slices.SortFunc(links, func(a, b ours) int {
		return cmp.Or(strings.Compare(a.want.VM, b.want.VM), strings.Compare(a.want.NIC, b.want.NIC))
	})
	return links, nil
}

// seats asks the switches for the links that belong on them, and for the NICs that have no link, which it returns.
func (m *Manager) seats(links []ours, labels []procfd.File) []ours {
	names := m.sources(labels)
	for _, o := range links {
		if o.want.Switch {
			names = append(names, o.want.Source)
		}
	}
	all := m.askSwitches(names...)
	for i := range links {
		if o := &links[i]; o.want.Switch {
			o.seat = seatOf(o, all)
		}
	}
	return m.socketNICs(labels, all)
}

// whole is the inventory with all processes looked into, as far as may be.
func (m *Manager) whole() (all []ours, err error) {
	err = m.lookInto(func() error { all, err = m.inventory(); return err })
	return all, err
}

func isQEMU(pid int) bool {
	_, err := qemu.ByPID(pid)
	return err == nil
}

// addHolder notes a queue. A guest's VMM comes first, whoever else holds one.
func (o *ours) addHolder(f procfd.File) {
	i := slices.IndexFunc(o.holders, func(h Holder) bool { return h.PID == f.PID })
	if i >= 0 {
		o.holders[i].FDs = append(o.holders[i].FDs, f.FD)
		slices.Sort(o.holders[i].FDs)
		return
	}
	at := len(o.holders)
	if isQEMU(f.PID) {
		at = 0
	}
	o.holders = slices.Insert(o.holders, at, Holder{f.PID, []int{f.FD}})
}

// inOwn lists the links of ours in the Manager's netns: taps, and macvtaps that were handed
// over by name.
func (m *Manager) inOwn() ([]ours, error) {
	var found []ours
	masters := map[int]*rtnl.Link{0: nil}
	for _, kind := range []string{"tun", string(macvtap.Macvtap), string(macvtap.IPVtap)} {
		all, err := m.nl.Links(kind, 0)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			r, ok := parseAlias(l.Alias)
			// The kernel lists links of every kind where it does not know the one that is asked
			// for. A macvtap whose lower is elsewhere belongs to the Manager there.
			if !ok || l.Kind != kind || kind != "tun" && l.LowerNS >= 0 {
				continue
			}
			if _, known := masters[l.Master]; !known {
				masters[l.Master] = m.masterOf(l)
			}
			found = append(found, m.own(l, r, masters[l.Master]))
		}
	}
	return found, nil
}

// own is a link of ours in the Manager's netns, with its master; nil for none.
func (m *Manager) own(l *rtnl.Link, r record, master *rtnl.Link) ours {
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

// addNodeHolders notes who has the nodes of the macvtaps in the Manager's netns open. nodes
// are fds that may be such, by process; those of the macvtaps elsewhere are known
// already, and so the processes that hold nothing else need not be asked for each link.
func (m *Manager) addNodeHolders(links, elsewhere []ours, nodes map[int][]int) {
	take := func(h Holder) {
		nodes[h.PID] = slices.DeleteFunc(nodes[h.PID], func(fd int) bool { return slices.Contains(h.FDs, fd) })
	}
	for _, o := range elsewhere {
		for _, h := range o.holders {
			take(h)
		}
	}
	seen := sync.OnceValue(seesAll)
	for i := range links {
		o := &links[i]
		if o.Tun != nil {
			continue
		}
		o.allSeen = true
		for pid, fds := range nodes {
			if len(fds) == 0 {
				continue
			}
			mine, err := macvtap.QueuesOf(pid, m.ns, o.Link)
			o.allSeen = o.allSeen && err == nil
			for _, fd := range mine {
				o.addHolder(procfd.File{PID: pid, FD: fd})
			}
			take(Holder{pid, mine})
		}
		o.allSeen = o.allSeen && len(o.holders) == 0 && seen()
	}
}

// named lists the links of that NIC of guests of that name, wherever they are: two users may both have one.
func (m *Manager) named(vm, nic string) ([]ours, error) {
	all, err := m.whole()
	return slices.DeleteFunc(all, func(o ours) bool { return o.want.VM != vm || o.want.NIC != nic }), err
}

// find returns the link of a guest's NIC, wherever it is, or nil. Of several it is the one that the
// Target's process holds.
func (m *Manager) find(t Target, nic string) (*ours, error) {
	all, err := m.named(t.VM, nic)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(o ours) bool {
		return t.PID != 0 && (len(all) > 1 || o.isSocket()) && !o.isHeldBy(t.PID) || t.PID == 0 && o.isOthers()
	})
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return &all[0], nil
	}
	return nil, fmt.Errorf("%w, with NIC %s: %s (name one guest with --pid)", qemu.ErrAmbiguous, nic, whose(all))
}

// isOthers tells whether a NIC is known only by the word of another user than root and the caller, who can give it any
// name: it is meant only where its process is named.
func (o *ours) isOthers() bool {
	if !o.isSocket() || len(o.holders) == 0 {
		return false
	}
	uid, err := procfd.RealUID(o.holders[0].PID)
	return err == nil && uid != 0 && uid != os.Geteuid()
}

func (o *ours) isHeldBy(pid int) bool {
	return slices.ContainsFunc(o.holders, func(h Holder) bool { return h.PID == pid })
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
func (m *Manager) anew(o *ours) (*ours, error) {
	all, err := m.named(o.want.VM, o.want.NIC)
	for _, now := range all {
		if o.sameSocket(&now) || !o.isSocket() && !now.isSocket() && now.inode == o.inode && now.Index == o.Index {
			return &now, err
		}
	}
	return nil, err
}

// findFor is find at a cost that does not grow with what else there is: by the tap's
// name, and among what the guest's process holds. sw is the switch that it is looked for in; empty for
// none. The holders of a link are not filled in.
func (m *Manager) findFor(pid int, vm, nic, sw string) (*ours, error) {
	name, _ := InterfaceName(vm, nic)
	l, err := m.nl.Link(name)
	if err == nil {
		if r, ok := parseAlias(l.Alias); ok && r.VM == vm && r.NIC == nic {
			o := m.own(l, r, m.masterOf(l))
			if r.Switch {
				o.seat = seatOf(&o, m.askNamed(r.Source))
			}
			return &o, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, o := range m.inSpaces(spacesOf(pid)) {
		if o.want.VM == vm && o.want.NIC == nic {
			return &o, nil
		}
	}
	return m.socketFor(pid, vm, nic, sw), nil
}

// again reads a link anew: it may have changed while we waited for the lock.
func (m *Manager) again(o ours) (now ours, err error) {
	now = o
	if o.isSocket() {
		there, err := m.anew(&o)
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
		want, ok := parseAlias(l.Alias)
		if !ok || want.VM != o.want.VM || want.NIC != o.want.NIC {
			return fmt.Errorf("link %s: %w", o.Name, fs.ErrNotExist)
		}
		fresh := m.own(l, want, m.masterOf(l))
		now.Link, now.want, now.formerly, now.master = l, fresh.want, fresh.formerly, fresh.master
		return nil
	})
	if err == nil && now.want.Switch {
		now.seat = seatOf(&now, m.askNamed(now.want.Source))
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
	if o.isSocket() {
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
	case o.isSocket():
		return nil, nil
	case o.in != nil:
		return m.macvtapHolder(o, pid).FDs, nil
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
