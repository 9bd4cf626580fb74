// Package peers finds the other ends of links: in which network namespace a veth device's peer is,
// and which macvlans and ipvlans in other namespaces share a parent device, no matter what made
// them. It reads only. Users may run any number of processes, make any number of namespaces and
// choose names and aliases in them, so it bounds what it looks at, and decides nothing by what they
// chose.
package peers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
)

// Bounds of what is looked at.
const (
	maxSpaces = 1 << 14 // namespaces
	maxPIDs   = 4       // of a namespace, by number; the first is usually a container's first process
)

// A Space is a network namespace.
type Space struct {
	// Inode tells it from all others that exist; 0 if it is unknown: no name and no process leads
	// to it.
	Inode uint64
	// ID is its id in the View's own namespace, or -1.
	ID int
	// Own says that it is the View's own namespace.
	Own bool
	// Foreign says that it belongs to another user namespace than the View's own one, or that the
	// owner is unknown: somebody else may be root in it, and write any alias.
	Foreign bool
	// Names are those of netns.Named.
	Names []string
	// PIDs are the lowest of its processes, and Processes is the number of all.
	PIDs      []int
	Processes int

	held *netns.NS // if the caller of Look has it open
}

// A View is a namespace with its links, and the namespaces around it, at one time.
type View struct {
	Own    *Space
	Spaces []*Space // the others, those with a name first, then by their first process
	// Notices say what could not be looked at.
	Notices []string

	ns      *netns.NS
	nl      *rtnl.Conn
	links   map[int]*rtnl.Link
	byID    map[int]*Space
	byInode map[uint64]*Space
}

// Look looks around in ns. nl is a socket in it. The View keeps using both. The namespaces that the
// caller has open are found even if they have neither name nor process.
func Look(ctx context.Context, ns *netns.NS, nl *rtnl.Conn, open ...*netns.NS) (*View, error) {
	links, err := nl.Links("", 0)
	if err != nil {
		return nil, err
	}
	inode, err := ns.Inode()
	if err != nil {
		return nil, err
	}
	v := &View{
		Own: &Space{Inode: inode, ID: -1, Own: true}, ns: ns, nl: nl, links: map[int]*rtnl.Link{},
		byID: map[int]*Space{}, byInode: map[uint64]*Space{},
	}
	v.byInode[inode] = v.Own
	for _, l := range links {
		v.links[l.Index] = l
	}
	for _, other := range open {
		inode, err := other.Inode()
		if err != nil {
			return nil, err
		}
		if s := v.space(inode); s != nil {
			s.held = other
		}
	}
	if err := v.find(ctx); err != nil {
		return nil, err
	}
	return v, v.identify(ctx)
}

// find collects the namespaces that have names or processes.
func (v *View) find(ctx context.Context) error {
	for _, n := range netns.Named(maxSpaces) {
		if s := v.space(n.Inode); s != nil {
			s.Names = append(s.Names, n.Name)
		}
	}
	over := false
	err := procfd.NetnsOfAll(ctx, func(pid int, inode uint64) {
		s := v.space(inode)
		if s == nil {
			over = true
			return
		}
		s.Processes++
		if len(s.PIDs) < maxPIDs {
			s.PIDs = append(s.PIDs, pid)
		}
	})
	if over {
		v.Notices = append(v.Notices,
			fmt.Sprintf("only %d network namespaces were looked at: there are more", maxSpaces))
	}
	return err
}

// space returns the namespace of that inode; nil if there are too many.
func (v *View) space(inode uint64) *Space {
	s := v.byInode[inode]
	if s == nil && len(v.Spaces) < maxSpaces {
		s = &Space{Inode: inode, ID: -1, Foreign: true}
		v.byInode[inode] = s
		v.Spaces = append(v.Spaces, s)
	}
	return s
}

// identify asks for the ids of the namespaces, and for their owners.
func (v *View) identify(ctx context.Context) error {
	own, err := v.ns.Owner()
	if err != nil { // the caller is in a descendant of the user namespace that owns it
		own = 0
	}
	for _, s := range v.Spaces {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err := s.open(func(other *netns.NS) error {
			owner, err := other.Owner()
			s.Foreign = err != nil || owner != own
			// The parent device's namespace may have no id for one in which a macvlan was made.
			_ = v.nl.AssignNetnsID(other) // without CAP_NET_ADMIN, the id may be missing
			s.ID, err = v.nl.NetnsID(other)
			return err
		})
		if err == nil && s.ID >= 0 {
			v.byID[s.ID] = s
		}
	}
	return nil
}

// errGone is returned for a namespace that no known path leads to any longer.
var errGone = errors.New("the namespace cannot be opened")

// open opens the namespace by one of the paths that lead to it, and calls f.
func (s *Space) open(f func(*netns.NS) error) error {
	if s.held != nil {
		return f(s.held)
	}
	for _, path := range s.Paths() {
		ns, err := netns.Open(path)
		if err != nil {
			continue // it no longer exists, or the caller may not open it
		}
		inode, err := ns.Inode()
		if err == nil && inode == s.Inode {
			return errors.Join(f(ns), ns.Close())
		}
		_ = ns.Close() // another process has that PID now
	}
	return errGone
}

// Paths returns what netns.Open takes for the namespace, the best first. A caller that opens one of
// them compares the inode.
func (s *Space) Paths() []string {
	paths := slices.Clone(s.Names)
	for _, pid := range s.PIDs {
		paths = append(paths, fmt.Sprintf("/proc/%d/ns/net", pid))
	}
	return paths
}

// ByID returns the namespace with that id: rtnl.OwnNS stands for the View's own one. A namespace of
// which only the id is known has no inode.
func (v *View) ByID(id int) *Space {
	if id == rtnl.OwnNS {
		return v.Own
	}
	s := v.byID[id]
	if s == nil {
		s = &Space{ID: id, Foreign: true}
		v.byID[id] = s
	}
	return s
}

// Link returns the link with that index in the View's own namespace; nil if there is none.
func (v *View) Link(index int) *rtnl.Link { return v.links[index] }

// Links returns the links of the View's own namespace, by index.
func (v *View) Links() []*rtnl.Link {
	all := make([]*rtnl.Link, 0, len(v.links))
	for _, l := range v.links {
		all = append(all, l)
	}
	slices.SortFunc(all, byIndex)
	return all
}

func byIndex(a, b *rtnl.Link) int { return cmp.Compare(a.Index, b.Index) }

// A Pair is a veth device with both ends.
type Pair struct {
	Link *rtnl.Link // the end in the View's own namespace
	// Peer is the other end as it is now; nil if the caller may not read it.
	Peer  *rtnl.Link
	Space *Space // of the other end
}

// PairOf returns the pair of a veth device of the View's own namespace. ok is false for any other
// link, or if the other end has gone.
func (v *View) PairOf(l *rtnl.Link) (p Pair, ok bool) {
	if l.Kind != "veth" || l.Lower == 0 {
		return p, false
	}
	p = Pair{Link: l, Space: v.ByID(l.LowerNS)}
	if p.Space.Own {
		p.Peer = v.links[l.Lower]
		return p, p.Peer != nil
	}
	peer, err := v.nl.LinkIn(l.LowerNS, l.Lower)
	if err == nil {
		p.Peer = peer
	}
	return p, !errors.Is(err, fs.ErrNotExist)
}

// Pairs returns all veth devices of the View's own namespace, by index. If both ends are there,
// the pair is in the result once.
func (v *View) Pairs() (all []Pair) {
	for _, l := range v.Links() {
		p, ok := v.PairOf(l)
		if ok && (!p.Space.Own || l.Index < p.Peer.Index) {
			all = append(all, p)
		}
	}
	return all
}

// A Child is a macvlan, macvtap, ipvlan or ipvtap on a parent device of the View's own namespace.
type Child struct {
	*rtnl.Link
	Parent *rtnl.Link
	Space  *Space
}

var childKinds = []string{"macvlan", "macvtap", "ipvlan", "ipvtap"}

// Children returns the devices that share parent devices of the View's own namespace, by the
// parent's index, those in the same namespace first. It leaves out those in a namespace that the
// caller may not read, and an ipvtap in another one, of which the kernel does not say where its
// parent device is.
func (v *View) Children() (all []Child, err error) {
	for _, l := range v.Links() {
		if parent := v.links[l.Lower]; parent != nil && l.LowerNS == rtnl.OwnNS && slices.Contains(childKinds, l.Kind) {
			all = append(all, Child{l, parent, v.Own})
		}
	}
	ids, err := v.nl.NetnsIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if v.isOwn(id) {
			continue
		}
		found, err := v.childrenIn(id)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	order := func(s *Space) int {
		if s.Own {
			return -1
		}
		return s.ID
	}
	slices.SortStableFunc(all, func(a, b Child) int {
		return cmp.Or(cmp.Compare(a.Parent.Index, b.Parent.Index), cmp.Compare(order(a.Space), order(b.Space)),
			byIndex(a.Link, b.Link))
	})
	return all, nil
}

// isOwn reports whether that is the id of the View's own namespace in itself. The kernel assigns it
// when it first reports a link elsewhere with a parent device here.
func (v *View) isOwn(id int) bool {
	if v.Own.ID < 0 {
		if own, err := v.nl.NetnsID(v.ns); err == nil && own >= 0 {
			v.Own.ID, v.byID[own] = own, v.Own
		}
	}
	return id == v.Own.ID
}

func (v *View) childrenIn(id int) (all []Child, err error) {
	for _, kind := range childKinds {
		links, err := v.nl.LinksIn(id, kind)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if l.LowerNS < 0 || !v.isOwn(l.LowerNS) {
				continue
			}
			if parent := v.links[l.Lower]; parent != nil {
				all = append(all, Child{l, parent, v.ByID(id)})
			}
		}
	}
	return all, nil
}

// Name returns what people call the namespace: its first name, or else its first process.
func (s *Space) Name() string {
	switch {
	case s.Own:
		return "here"
	case len(s.Names) > 0:
		return s.Names[0]
	case len(s.PIDs) > 0:
		return fmt.Sprintf("/proc/%d/ns/net", s.PIDs[0])
	}
	return fmt.Sprintf("unnamed (id %d)", s.ID)
}

// maxComm is TASK_COMM_LEN of include/linux/sched.h, with a newline for its NUL.
const maxComm = 16

// Command returns the command name of a process (comm in proc_pid_comm(5)), which its user chooses,
// or "" if it has ended.
func Command(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	text = text[:min(len(text), maxComm)]
	return strings.TrimSuffix(string(text), "\n")
}
