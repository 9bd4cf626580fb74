package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// Device is a link that carries our alias, where it is, and who holds it. A NIC by a socket has no
// link: see switch_nics.go.
type Device struct {
	*rtnl.Link
	Want         nic.Record // as its alias says
	FormerSource string     // the name that its bridge or parent device had then; empty where it has it still
	MasterName   string     // what a tap is a port of; empty for nothing

	// A macvtap is in a netns of its own, which is reached through who has it open. One that
	// was handed over by name is in the Manager's.
	NetnsFile  *procfd.File // nil: the link is in the Manager's netns
	NetnsInode uint64       // of that netns

	SwitchPort SwitchPort // of a NIC that belongs on a userspace switch
	Deleted    bool       // its device was deleted under its VMM: see dead.go

	// Of a NIC by a socket: whose its process is, and whether root or the caller says that it is
	// there, by a label of theirs or by a switch that is theirs.
	UID     int
	vouched bool

	Holders []nic.Holder // as far as the caller may see, the VMM first
	allSeen bool         // of a macvtap in the Manager's netns: whoever held it would be among them
	Pending bool         // nobody holds it, since an attach is about to hand it over by its name
}

// On runs f with a netlink socket in the link's netns.
func (h *Host) On(dev *Device, f func(nl *rtnl.Conn) error) error {
	return h.Within(dev, func(_ *netns.NS, nl *rtnl.Conn) error { return f(nl) })
}

// Within runs f with the link's netns and a netlink socket there.
func (h *Host) Within(dev *Device, f func(ns *netns.NS, nl *rtnl.Conn) error) error {
	if dev.NetnsFile == nil {
		return f(h.NS, h.NL)
	}
	return h.withinOpen(dev, func(ns *netns.NS) error {
		nl, err := rtnl.Open(ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		return f(ns, nl)
	})
}

// withinOpen runs f with the netns of a link that is not in the Manager's.
func (h *Host) withinOpen(dev *Device, f func(*netns.NS) error) error {
	ns, err := netns.OpenHeld(*dev.NetnsFile)
	if err != nil {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	defer ns.Close()
	if inode, err := ns.Inode(); err != nil || inode != dev.NetnsInode {
		return fmt.Errorf("the netns of %s: %w", dev.Name, fs.ErrNotExist)
	}
	return f(ns)
}

// Devices reads all links of ours and who holds them, by guest and id.
func (h *Host) Devices(ctx context.Context) ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return h.devicesOf(ctx, links, op)
}

// devicesOf is the inventory where links and processes were looked at already.
func (h *Host) devicesOf(ctx context.Context, links []*rtnl.Link, op *openFiles) ([]Device, error) {
	own := h.records(links)
	for i := range own {
		dev := &own[i]
		if dev.Tun != nil {
			dev.addHolders(op, op.queuesOf(ctx, dev.Name))
		} else {
			h.addNodeHolders(dev, op)
		}
		dev.Pending = dev.awaitsLibvirt()
	}
	all := append(own, h.inSpaces(ctx, op)...)
	all = append(all, h.seats(ctx, all, op)...)
	all = append(all, deadNICs(op, all)...)
	all = append(all, h.deadOfLibvirt(ctx, op, all)...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(all, func(a, b Device) int {
		return cmp.Or(strings.Compare(a.Want.VM, b.Want.VM), strings.Compare(a.Want.NIC, b.Want.NIC))
	})
	return all, nil
}

// records are those of the links in the Manager's netns that are NICs.
func (h *Host) records(links []*rtnl.Link) []Device {
	var found []Device
	masters := map[int]*rtnl.Link{0: nil}
	for _, l := range links {
		r, ok := nic.ParseRecord(l.Alias)
		if !ok {
			continue
		}
		if _, known := masters[l.Master]; !known {
			masters[l.Master] = h.MasterOf(l)
		}
		found = append(found, h.own(l, r, masters[l.Master]))
	}
	return found
}

// seats asks the switches for the links that belong on them, and for the NICs that have no link,
// which it returns.
func (h *Host) seats(ctx context.Context, links []Device, op *openFiles) []Device {
	names := sources(op.labels)
	for _, dev := range links {
		if dev.Want.Switch {
			names = append(names, dev.Want.Source)
		}
	}
	all := h.askSwitches(ctx, names...)
	for i := range links {
		if dev := &links[i]; dev.Want.Switch {
			dev.SwitchPort = switchPortOf(dev, all)
		}
	}
	return h.socketNICs(op, all)
}

// AllDevices is the inventory with all processes looked into, as far as may be.
func (h *Host) AllDevices(ctx context.Context) (all []Device, err error) {
	err = h.WithPrivilege(func() error { all, err = h.Devices(ctx); return err })
	return all, err
}

func isQEMU(pid int) bool {
	_, err := qemu.ByPID(pid)
	return err == nil
}

// addHolders notes who has files open that are the link's, in the order in which they were seen;
// but a guest's VMM comes first, whoever else holds one.
func (dev *Device) addHolders(op *openFiles, files []procfd.File) {
	at := map[int]int{}
	for i, h := range dev.Holders {
		at[h.PID] = i
	}
	for _, f := range files {
		i, known := at[f.PID]
		if !known {
			i = len(dev.Holders)
			at[f.PID] = i
			dev.Holders = append(dev.Holders, nic.Holder{PID: f.PID})
		}
		dev.Holders[i].FDs = append(dev.Holders[i].FDs, f.FD)
	}
	for _, h := range dev.Holders {
		slices.Sort(h.FDs)
	}
	slices.SortStableFunc(dev.Holders, func(a, b nic.Holder) int {
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
func (h *Host) own(l *rtnl.Link, r nic.Record, master *rtnl.Link) Device {
	dev := Device{Link: l, Want: r}
	if master != nil {
		dev.MasterName = master.Name
	}
	on := master
	if dev.Tun == nil {
		on, _ = h.NL.LinkByIndex(l.Lower)
	}
	h.follow(&dev, on)
	return dev
}

// Named lists the links of that NIC of guests of that name, wherever they are: two users may both
// have one.
func (h *Host) Named(ctx context.Context, vm, nic string) ([]Device, error) {
	all, err := h.AllDevices(ctx)
	return slices.DeleteFunc(all, func(dev Device) bool { return dev.Want.VM != vm || dev.Want.NIC != nic }), err
}

// Find returns the link of a guest's NIC, wherever it is, or nil. Of several it is the one that the
// Target's process holds.
func (h *Host) Find(ctx context.Context, t nic.Target, nic string) (*Device, error) {
	all, err := h.Named(ctx, t.VM, nic)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(dev Device) bool {
		return t.PID != 0 && (len(all) > 1 || !dev.HasLink()) && !dev.IsHeldBy(t.PID) || t.PID == 0 && dev.IsUntrusted()
	})
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return &all[0], nil
	}
	return nil, fmt.Errorf("%w, with NIC %s: %s (name one guest with --pid)", qemu.ErrAmbiguous, nic, Whose(all))
}

// IsUntrusted reports whether a NIC without a link is held by another user's process, than root's
// and the caller's: it is meant only where that process is named.
func (dev *Device) IsUntrusted() bool { return !dev.HasLink() && !isTrusted(dev.UID) }

// IsUnconfirmed reports whether nothing but the word of another user's processes says that there is
// a NIC: a label is whatever its maker wrote, for whatever guest. It is shown, with that user. Of
// no other guest does it decide anything.
func (dev *Device) IsUnconfirmed() bool { return dev.IsUntrusted() && !dev.vouched }

// IsHealthy reports whether nothing is to be mended of a NIC by a socket, as far as its switch
// says.
func (dev *Device) IsHealthy() bool {
	return dev.Want.Phase == nic.PhasePlugged && dev.SwitchPort.Err == nil && !dev.IsDisconnected()
}

// UnconfirmedText names whose word it is.
func (dev *Device) UnconfirmedText() string {
	text := "nothing but"
	if len(dev.Holders) > 0 {
		text += fmt.Sprintf(" process %d of", dev.Holders[0].PID)
	}
	if dev.UID == nobodys {
		return text + " nobody in particular says that it is there"
	}
	return fmt.Sprintf("%s user %d says that it is there", text, dev.UID)
}

func (dev *Device) IsHeldBy(pid int) bool {
	return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return h.PID == pid })
}

// Whose names links, and who holds them.
func Whose(all []Device) string {
	var list []string
	for _, dev := range all {
		text := dev.Name + " of nobody who can be seen"
		if len(dev.Holders) > 0 {
			pid := dev.Holders[0].PID
			text = fmt.Sprintf("%s of process %d", dev.Name, pid)
			if uid, err := procfd.RealUID(pid); err == nil {
				text += fmt.Sprintf(" (uid %d)", uid)
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// Reread reads the same link and its holders again; nil where it is gone.
func (h *Host) Reread(ctx context.Context, dev *Device) (*Device, error) {
	all, err := h.Named(ctx, dev.Want.VM, dev.Want.NIC)
	for _, now := range all {
		if dev.sameWithoutLink(&now) || dev.HasLink() && now.HasLink() && now.NetnsInode == dev.NetnsInode && now.Index == dev.Index {
			return &now, err
		}
	}
	return nil, err
}

// FindFor is find at a cost that does not grow with what else there is: by the tap's name, and
// among what the guest's process holds. sw is the switch that it is looked for in; empty for none.
// The holders of a link are not filled in.
func (h *Host) FindFor(ctx context.Context, pid int, vm, nicID, sw string) (*Device, error) {
	name, _ := nic.InterfaceName(vm, nicID)
	l, err := h.NL.Link(name)
	if err == nil {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == vm && r.NIC == nicID {
			dev := h.own(l, r, h.MasterOf(l))
			if r.Switch {
				dev.SwitchPort = h.ReadSwitchPort(ctx, &dev)
			}
			return &dev, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	op, err := h.openedBy(pid)
	if err != nil {
		return nil, err
	}
	elsewhere := h.inSpaces(ctx, op)
	if dev := h.socketFor(ctx, pid, op, vm, nicID, sw); dev != nil {
		return dev, nil
	}
	all := append(elsewhere, deadNICs(op, elsewhere)...)
	for _, dev := range append(all, h.deadOfLibvirt(ctx, op, all)...) {
		if dev.Want.VM == vm && dev.Want.NIC == nicID {
			return &dev, nil
		}
	}
	return nil, nil
}

// Refresh reads a link anew: it may have changed while we waited for the lock.
func (h *Host) Refresh(ctx context.Context, dev Device) (now Device, err error) {
	now = dev
	if !dev.HasLink() {
		there, err := h.Reread(ctx, &dev)
		if there == nil {
			return dev, cmp.Or(err, fmt.Errorf("NIC %s: %w", dev.Name, fs.ErrNotExist))
		}
		return *there, err
	}
	err = h.On(&dev, func(nl *rtnl.Conn) error {
		l, err := nl.LinkByIndex(dev.Index)
		if err != nil {
			return err
		}
		want, ok := nic.ParseRecord(l.Alias)
		if !ok || want.VM != dev.Want.VM || want.NIC != dev.Want.NIC {
			return fmt.Errorf("link %s: %w", dev.Name, fs.ErrNotExist)
		}
		fresh := h.own(l, want, h.MasterOf(l))
		now.Link, now.Want, now.FormerSource, now.MasterName = l, fresh.Want, fresh.FormerSource, fresh.MasterName
		return nil
	})
	if err == nil && now.Want.Switch {
		now.SwitchPort = h.ReadSwitchPort(ctx, &now)
	}
	return now, err
}

// IsOrphaned tells that surely nobody holds the link, nor is about to.
func (dev *Device) IsOrphaned() bool { return dev.HasNoHolder() && !dev.Pending && !dev.IsStarting() }

// HasNoHolder tells that surely nobody holds the link, whatever the caller may see: a tap that is
// not persistent is there only because somebody holds it, and a persistent one
// has neither carrier nor queues without. Of a macvtap the kernel does not tell, so all
// processes must have been seen; one that is in a netns of its own is not there unheld.
func (dev *Device) HasNoHolder() bool {
	if dev.Tun == nil {
		return dev.NetnsFile == nil && dev.allSeen && len(dev.Holders) == 0
	}
	return dev.Tun != nil && dev.Tun.Persist && !dev.Tun.Attached && len(dev.Holders) == 0
}

// VMMPID returns the QEMU that holds the link; 0 where none is seen.
func (dev *Device) VMMPID() int {
	for _, h := range dev.Holders {
		if isQEMU(h.PID) {
			return h.PID
		}
	}
	return 0
}

// OtherHolder returns a process that holds the link and is no QEMU, such as a vmnet
// that works on it; 0 where none is seen.
func (dev *Device) OtherHolder() int {
	for _, h := range dev.Holders {
		if _, err := qemu.ByPID(h.PID); errors.Is(err, qemu.ErrNotFound) {
			return h.PID
		}
	}
	return 0
}

// HeldBy tells whether a process holds the link.
func (h *Host) HeldBy(dev *Device, pid int) (bool, error) {
	if !dev.HasLink() {
		return dev.IsHeldBy(pid), nil
	}
	if dev.NetnsFile != nil {
		return dev.NetnsFile.PID == pid, nil
	}
	fds, err := h.QueuesOf(dev, pid)
	return len(fds) > 0, err
}

// QueuesOf are a process's fds that are queues of the link, ascending.
func (h *Host) QueuesOf(dev *Device, pid int) (fds []int, err error) {
	switch {
	case !dev.HasLink():
		return nil, nil
	case dev.NetnsFile != nil:
		// None is known where we may not look.
		_ = h.withinOpen(dev, func(ns *netns.NS) error { fds, err = macvlan.QueuesOf(pid, ns, dev.Link); return err })
		return fds, nil
	case dev.Tun == nil:
		return macvlan.QueuesOf(pid, h.NS, dev.Link)
	}
	inode, err := h.NS.Inode()
	if err != nil {
		return nil, err
	}
	procfd.Of(pid, func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == dev.Name && tun.InNetns(f, inode) {
			fds = append(fds, f.FD)
		}
	})
	slices.Sort(fds)
	return fds, nil
}

// LowerName names the device that a macvtap of ours sits on now.
func (h *Host) LowerName(dev *Device) string {
	if l, err := h.NL.LinkByIndex(dev.Lower); err == nil {
		return l.Name
	}
	return cmp.Or(dev.Want.Source, "?")
}

// StillUnheld tells whether l is the same link of ours as it is later, and still held by nobody.
func (dev Device) StillUnheld(l *rtnl.Link) bool {
	if dev.Link == nil || l.Alias != dev.Alias {
		return false
	}
	dev.Link = l
	return dev.IsOrphaned()
}

// initPidNS is the first pid namespace, in which all processes are seen (PROC_PID_INIT_INO in
// include/linux/proc_ns.h).
const initPidNS = "pid:[4026531836]"

// seesAll tells whether the caller sees what all processes have open. Process 1 may be shielded
// even from root; it is seen where it can be, and else taken for what it is: no VMM.
func seesAll() bool {
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initPidNS {
		return false
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if p == "/proc/1" {
			continue
		}
		fds, openErr := os.Open(p + "/fd")
		if openErr == nil {
			_ = fds.Close()
		}
		_, linkErr := os.Readlink(p + "/ns/net") // asks for the same rights as the links in fd (proc_fd_link)
		if errors.Is(openErr, fs.ErrPermission) || errors.Is(linkErr, fs.ErrPermission) {
			return false
		}
	}
	return err == nil
}

// ByName lists the links of a guest, or of all where vm is empty, that were handed over by their
// names.
func (h *Host) ByName(ctx context.Context, vm string) ([]Device, error) {
	all, err := h.AllDevices(ctx)
	var found []Device
	for _, dev := range all {
		if (vm == "" || dev.Want.VM == vm) && dev.Want.Via == nic.ViaLibvirt && dev.NetnsFile == nil && !dev.IsSocket() {
			found = append(found, dev)
		}
	}
	return found, err
}

// MasterName names what a link is a port of; empty for nothing.
func (h *Host) MasterName(l *rtnl.Link) string {
	if master := h.MasterOf(l); master != nil {
		return master.Name
	}
	return ""
}

// Title names a NIC, or a tap of which only its bridge is known.
func (dev *Device) Title() string {
	if dev.IsPlain() {
		return dev.Name
	}
	return dev.Want.VM + "/" + dev.Want.NIC
}

// StaysBehind reports whether the device outlives the process that holds it.
func (dev *Device) StaysBehind() bool {
	return dev.Want.Via == nic.ViaLibvirt && dev.NetnsFile == nil && !dev.Deleted && (dev.Tun == nil || dev.Tun.Persist)
}
