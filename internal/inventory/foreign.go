package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/alias"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/ovs"
	"vmnet/internal/stablemac"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// ForeignLink is a tap or macvtap of a guest that was not made by vmnet, but for example by
// libvirt.
type ForeignLink struct {
	Interface string
	Index     int
	Type      string           // TypeTap or "macvtap"
	MAC       net.HardwareAddr // the link's own, which HasGuest compares with the guest's
	Source    string           // the bridge that it is a port of, or its parent device; empty for none
	Port      brport.Settings  // how the port of a bridge is set
	State     nic.State
	MTU       int   // bytes
	Queues    []int // the process's fds, ascending

	Link  *rtnl.Link
	OVS   *ovs.Port // of a tap on a bridge of Open vSwitch, once AskOVS has asked
	OVSDB string    // the socket of its database
}

// AskOVS adds to taps that are no ports of the kernel's bridges what Open vSwitch says of them, by
// its databases. One that does not answer, or that the caller may not ask, adds nothing.
func (h *Host) AskOVS(ctx context.Context, links []ForeignLink, databases ...string) {
	for i := range links {
		l := &links[i]
		if l.Type != nic.TypeTap || l.Link.Port != nil {
			continue
		}
		for _, path := range databases {
			dev := Device{Link: l.Link, Want: nic.Record{Type: nic.TypeOVS, OVSDB: path}}
			if h.ReadOVS(ctx, &dev); dev.OVS.Port == nil {
				continue
			}
			l.OVS, l.OVSDB, l.Source = dev.OVS.Port, path, dev.OVS.Port.Bridge
			l.State, l.Port = dev.ovsState(), dev.OVS.Port.Settings
			break
		}
	}
}

// HasGuest reports whether the link may belong to the guest's NIC of that MAC: a macvtap has the
// same, a tap one whose first byte is fe (virNetDevTapCreateInBridgePort in libvirt's
// src/util/virnetdevtap.c), as vmnet's have.
func (l ForeignLink) HasGuest(mac net.HardwareAddr) bool {
	if len(mac) != 6 {
		return false
	}
	if l.Type == nic.TypeTap {
		mac = stablemac.HostMAC(mac)
	}
	return bytes.Equal(l.MAC, mac)
}

// Foreign lists the foreign links in the Host's netns that the QEMU process pid holds, by interface
// index. Looking at other users' processes takes CAP_SYS_PTRACE; finding out which process holds a
// macvtap takes CAP_SYS_ADMIN.
func (h *Host) Foreign(pid int) ([]ForeignLink, error) {
	return h.ForeignWithin(pid, &Allowance{Files: holders.MaxUserFiles, Closer: holders.MaxUserFiles})
}

// Allowance is how many files of a user's processes may still be looked at, and how many of these
// more closely.
type Allowance struct{ Files, Closer int }

// ForeignWithin is Foreign within what is left of an allowance, which it reduces.
func (h *Host) ForeignWithin(pid int, left *Allowance) ([]ForeignLink, error) {
	inode, err := h.NS.Inode()
	if err != nil {
		return nil, err
	}
	taps := map[string][]int{}
	var nodes []procfd.File
	procfd.First(pid, min(left.Files, holders.MaxProcessFiles), func(f procfd.File) {
		left.Files--
		isTap, isNode := tun.LooksLikeQueue(f), macvlan.LooksLikeQueue(f)
		if !isTap && !isNode || left.Closer == 0 {
			return
		}
		left.Closer--
		if !isTap {
			nodes = append(nodes, procfd.File{PID: f.PID, FD: f.FD})
		} else if name := tun.InterfaceOf(f); name != "" && tun.InNetns(f, inode) {
			taps[name] = append(taps[name], f.FD)
		}
	})
	var found []ForeignLink
	for name, fds := range taps {
		l, err := h.NL.Link(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !IsForeign(l, "tun") {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s of process %d: %w", name, pid, err)
		}
		found = append(found, h.foreignTap(l, fds))
	}
	macvtaps, err := h.foreignMacvtaps(nodes)
	if err != nil {
		return nil, err
	}
	found = append(found, macvtaps...)
	slices.SortFunc(found, func(a, b ForeignLink) int { return a.Index - b.Index })
	return found, nil
}

// IsForeign reports whether a link is of that kind and is not managed by vmnet.
func IsForeign(l *rtnl.Link, kind string) bool {
	return l.Kind == kind && !strings.HasPrefix(l.Alias, alias.Prefix)
}

func (h *Host) foreignTap(l *rtnl.Link, fds []int) ForeignLink {
	slices.Sort(fds)
	f := ForeignLink{
		Interface: l.Name, Index: l.Index, Type: nic.TypeTap, MAC: l.MAC, State: LinkState(l), MTU: l.MTU, Queues: fds,
		Source: h.MasterName(l), Link: l,
	}
	if br, err := h.PortBridge(l); err == nil {
		f.Port, _ = bridges.ReadPort(h.NL, br, l)
	}
	return f
}

// foreignMacvtaps lists the macvtaps whose nodes a process has open, with a parent device in the
// Host's netns or elsewhere.
func (h *Host) foreignMacvtaps(nodes []procfd.File) ([]ForeignLink, error) {
	queues := map[uint64][]int{} // fds by the node's number
	for _, f := range nodes {
		if number, ok := macvlan.NumberOf(f); ok {
			queues[number] = append(queues[number], f.FD)
		}
	}
	if len(queues) == 0 {
		return nil, nil
	}
	links, err := h.NL.Links(string(vtap.Macvtap), 0)
	if err != nil {
		return nil, err
	}
	var found []ForeignLink
	for _, l := range links {
		if !IsForeign(l, string(vtap.Macvtap)) {
			continue
		}
		number, err := macvlan.Number(h.NS, l)
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("who holds macvtap %s: %w", l.Name, err)
		}
		fds := queues[number]
		if len(fds) == 0 {
			continue
		}
		slices.Sort(fds)
		f := ForeignLink{
			Interface: l.Name, Index: l.Index, Type: string(vtap.Macvtap), MAC: l.MAC, State: LinkState(l),
			MTU: l.MTU, Queues: fds, Link: l,
		}
		if lower, err := h.NL.LinkByIndex(l.Lower); err == nil && l.LowerNS < 0 {
			f.Source = lower.Name
		}
		found = append(found, f)
	}
	return found, nil
}

// PortBridge returns the bridge that a link is a port of. The error matches fs.ErrNotExist if the
// link has no master, or one of another kind.
func (h *Host) PortBridge(l *rtnl.Link) (*rtnl.Link, error) {
	if l.Master == 0 {
		return nil, fmt.Errorf("interface %s is on no bridge: %w", l.Name, fs.ErrNotExist)
	}
	br, err := h.NL.LinkByIndex(l.Master)
	if err != nil {
		return nil, fmt.Errorf("the bridge of %s: %w", l.Name, err)
	}
	if br.Bridge == nil {
		return nil, fmt.Errorf("interface %s is a port of %s, which is no Linux bridge: %w",
			l.Name, br.Name, fs.ErrNotExist)
	}
	return br, nil
}

// plain lists the plain taps among links, by name.
func (h *Host) plain(links []*rtnl.Link) (found []Device) {
	for _, l := range links {
		if t, ok := plaintap.Parse(l.Alias); ok && l.Tun != nil {
			want := nic.Record{Type: nic.TypeTap, Source: t.Source, Port: t.Port, Owner: t.Owner}
			if t.OVS {
				want.Type, want.OVSDB = nic.TypeOVS, t.OVSDB
			}
			found = append(found, h.own(l, want, h.MasterOf(l)))
		}
	}
	slices.SortFunc(found, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// plainOf is plain with the holders that the caller may see.
func (h *Host) plainOf(ctx context.Context, links []*rtnl.Link, op *holders.Files) []Device {
	found := h.plain(links)
	for i := range found {
		found[i].addHolders(op, op.QueuesOf(ctx, found[i].Name))
		h.ReadOVS(ctx, &found[i])
	}
	return found
}

// PlainHeld lists all plain taps, with the holders that the caller may see.
func (h *Host) PlainHeld(ctx context.Context) ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return h.plainOf(ctx, links, op), context.Cause(ctx)
}

// plainNICs lists the plain taps as rows of ListAll, with the guest's name if QEMU's command line
// has it.
func (h *Host) plainNICs(ctx context.Context, links []*rtnl.Link, op *holders.Files) (nics []Seen) {
	for _, dev := range h.plainOf(ctx, links, op) {
		nic := dev.withHolders(nic.NIC{
			Interface: dev.Name, Type: dev.Want.Type, Source: dev.Want.Source, Port: dev.Want.Port, Queues: 1,
			Vhost: "", MTU: dev.MTU, State: LinkState(dev.Link), UID: dev.Want.Owner, OVSDB: dev.Want.OVSDB,
		})
		if dev.IsOVS() {
			nic.State = dev.ovsState()
		}
		if p, err := qemu.ByPID(nic.PID); err == nil {
			nic.VM = p.Name
		}
		nics = append(nics, Seen{nic, dev})
	}
	return nics
}

// WithoutMaster lists vmnet's taps that are on no bridge, except those that an attach or a forced
// detach keeps off it.
func (h *Host) WithoutMaster() ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	all := append(h.records(links), h.plain(links)...)
	return slices.DeleteFunc(all, func(dev Device) bool {
		// cut off by force
		working := dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseDetaching && !dev.Up
		return dev.Want.Type != nic.TypeTap || dev.Want.Switch || dev.Master != 0 || working
	}), nil
}

// Outlived reports whether a tap is on no bridge, and was on one of br's name before br was made:
// its alias has the index of another bridge, or, if the alias has no room for that, the tap is
// older than br.
func (dev *Device) Outlived(br *rtnl.Link) bool {
	if dev.Want.At != 0 {
		return dev.Master == 0 && dev.Want.At != br.Index
	}
	return Outlived(dev.Link, br)
}

// Outlived reports whether a link is on no bridge, and existed before br.
func Outlived(l, br *rtnl.Link) bool { return l.Master == 0 && l.Index < br.Index }

// IsForeignTap reports whether a link is a foreign tap that may belong to the guest's NIC of that
// MAC.
func IsForeignTap(l *rtnl.Link, mac net.HardwareAddr) bool {
	return IsForeign(l, "tun") && ForeignLink{Type: nic.TypeTap, MAC: l.MAC}.HasGuest(mac)
}
