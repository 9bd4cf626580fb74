package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/tapmgr/nic"
)

// A NIC by a socket has no link whose alias could describe it. Two labels do: that of its port in
// the switch, and one that QEMU holds beside the socket, which exists also without the switch. The
// NIC is in no netns, and belongs to the one for which it was attached, as a tap would.

// socketNICs lists the NICs by sockets that the labels of processes, or of ports in the replies of
// switches, describe.
func (h *Host) socketNICs(op *holders.Files, all []switchReply) []Device {
	var found []Device
	followLifelines(op, all)
	byLabel := map[[2]uint64]int{} // of the files' device and inode to found
	for _, l := range op.Labels {
		if l.Type != nic.TypeSocket {
			continue
		}
		st, err := l.Stat()
		if err != nil {
			continue
		}
		id := [2]uint64{st.Dev, st.Ino}
		i, known := byLabel[id]
		if !known { // while a set renews the label, there are two
			i = slices.IndexFunc(found, func(dev Device) bool {
				return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && dev.IsHeldBy(l.PID)
			})
			if i < 0 {
				i = len(found)
				found = append(found, SocketNIC(l.Record, l.User))
			}
			byLabel[id] = i
		}
		found[i].vouched = found[i].vouched || holders.IsTrusted(l.User)
		found[i].addHolders(op, []procfd.File{l.File})
	}
	for _, a := range all {
		for i, p := range a.ports {
			r, ok := nic.ParseRecord(p.Label)
			if !ok || r.Type != nic.TypeSocket || r.Netns != op.Own || p.Holder == 0 || !a.mayHold(p.Holder) {
				continue
			}
			found = withPort(found, r, SwitchPort{Path: a.path, Port: &a.ports[i]}, a.trusted)
		}
	}
	for i := range found {
		if dev := &found[i]; dev.SwitchPort.Port == nil {
			dev.setSwitchPort(switchPortOf(dev, all)) // of another user's only what was asked anyway: see sources
		}
	}
	return found
}

// followLifelines sets the holder of each port with a lifeline to the process that has the lifeline
// now: the process that the port was made for may have started QEMU and wait for it, or have passed
// its files on and exited. The new holder has the port's own label.
func followLifelines(op *holders.Files, all []switchReply) {
	for _, a := range all {
		for i := range a.ports {
			p := &a.ports[i]
			if p.Lifeline == 0 {
				continue
			}
			r, _ := nic.ParseRecord(p.Label)
			pipe := fmt.Sprintf("pipe:[%d]", p.Lifeline)
			for _, l := range op.Labels {
				if l.Type == nic.TypeSocket && l.VM == r.VM && l.NIC == r.NIC && (op.IsVMM(l.PID) ||
					!op.IsVMM(p.Holder)) && holds(l.PID, pipe) {
					p.Holder = l.PID
				}
			}
		}
	}
}

// holds reports whether a process has a file with that target of its link in /proc, among the files
// that a VMM has from its start.
func holds(pid int, target string) (found bool) {
	procfd.First(pid, holders.MaxEarly, func(f procfd.File) { found = found || f.Target == target })
	return found
}

// setSwitchPort sets the port of a NIC by a socket. The port's label is the later one: the label
// that QEMU holds stays as it was when the NIC was plugged.
func (dev *Device) setSwitchPort(s SwitchPort) {
	dev.SwitchPort = s
	if s.Port == nil {
		return
	}
	if r, ok := nic.ParseRecord(s.Port.Label); ok {
		dev.Want, dev.Alias = dev.Want.ChangedTo(r), s.Port.Label
	}
}

// withPort sets a switch's port of the NIC whose label its holder has, or adds a NIC that only the
// port describes.
func withPort(found []Device, r nic.Record, s SwitchPort, trusted bool) []Device {
	i := slices.IndexFunc(found, func(dev Device) bool {
		return dev.Want.VM == r.VM && dev.Want.NIC == r.NIC && dev.IsHeldBy(s.Port.Holder)
	})
	if i < 0 {
		i = len(found)
		found = append(found, SocketNIC(r, holders.OwnerOf(s.Port.Holder)))
		found[i].Holders = []nic.Holder{{PID: s.Port.Holder, FDs: []int{}}}
	}
	found[i].vouched = found[i].vouched || trusted
	found[i].setSwitchPort(s)
	return found
}

// SocketNIC returns a NIC by a socket that a process of that user holds.
func SocketNIC(r nic.Record, uid int) Device {
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: nic.TypeSocket, Up: true, MTU: r.GuestMTU()}
	return Device{Link: link, Want: r, allSeen: true, UID: uid}
}

// sources returns the switches named in labels of processes of root or the caller. Another
// user's label may name any socket.
func sources(labels []holders.Label) (names []string) {
	for _, l := range labels {
		if l.Type == nic.TypeSocket && holders.IsTrusted(l.User) {
			names = append(names, l.Source)
		}
	}
	return names
}

// socketFor finds a NIC by a socket that a process holds, by its label, or as a port of switch sw,
// which is all that a crash may have left; nil if there is none.
func (h *Host) socketFor(ctx context.Context, pid int, op *holders.Files, vm, nic, sw string) *Device {
	names := sources(op.Labels)
	if sw != "" {
		names = append(names, sw)
	}
	if len(names) == 0 {
		return nil
	}
	all := h.askNamed(ctx, names...)
	for i := range all {
		if path, err := control.Path(sw); err == nil && path == all[i].path {
			all[i].trusted = true
		}
	}
	for _, dev := range h.socketNICs(op, all) {
		if dev.Want.VM == vm && dev.Want.NIC == nic && dev.IsHeldBy(pid) {
			return &dev
		}
	}
	return nil
}

// SwitchPortText says which port to remove from which switch, for a step's text.
func (dev *Device) SwitchPortText() string {
	if dev.SwitchPort.Port == nil {
		return fmt.Sprintf("switch %s, if it is there", dev.Want.Source)
	}
	return fmt.Sprintf("switch %s: remove-port %s", dev.Want.Source, dev.SwitchPort.Port.Name)
}

// deadNICs lists the NICs whose device was deleted under their VMM: it holds a label that none of
// the existing devices, all, matches, and an orphaned queue. A label alone is no NIC: a VMM that
// was started with one keeps it after a detach.
func deadNICs(op *holders.Files, all []Device) (found []Device) {
	queues := map[int]int{} // dead ones, by process
	for _, l := range op.Labels {
		there := slices.ContainsFunc(all, func(dev Device) bool {
			return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && (len(dev.Holders) == 0 || dev.IsHeldBy(l.PID))
		})
		if l.Type == nic.TypeSocket || there || slices.ContainsFunc(found, func(dev Device) bool {
			return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && dev.IsHeldBy(l.PID)
		}) {
			continue
		}
		if _, counted := queues[l.PID]; !counted {
			queues[l.PID] = deadQueues(op, l.PID, all)
		}
		if queues[l.PID] > 0 {
			found = append(found, deadNIC(l))
		}
	}
	return found
}

// deadQueues counts the queues of a process whose devices are gone: the kernel has no interface
// name for such a tap's fd, and a macvtap's fd belongs to none of the existing devices.
func deadQueues(op *holders.Files, pid int, all []Device) (n int) {
	for _, f := range op.Nodes[pid] {
		if !isQueueOf(all, f) {
			n++
		}
	}
	procfd.First(pid, holders.MaxEarly, func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == "" {
			n++
		}
	})
	return n
}

// isQueueOf reports whether a file is a queue of one of these NICs.
func isQueueOf(all []Device, f procfd.File) bool {
	return slices.ContainsFunc(all, func(dev Device) bool {
		return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool {
			return h.PID == f.PID && slices.Contains(h.FDs, f.FD)
		})
	})
}

func deadNIC(l holders.Label) Device {
	r := l.Record
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: r.Type, MTU: r.GuestMTU()}
	return Device{
		Link: link, Want: r, Deleted: true, allSeen: true, UID: l.User, vouched: holders.IsTrusted(l.User),
		Holders: []nic.Holder{{PID: l.PID, FDs: []int{}}},
	}
}

// Labels returns the texts of a process's labels of a NIC.
func (h *Host) Labels(pid int, vm, nicID string) (texts []string, err error) {
	op, err := h.openedBy(pid)
	if err != nil {
		return nil, err
	}
	for _, l := range op.Labels {
		if l.VM == vm && l.NIC == nicID {
			texts = append(texts, l.Text)
		}
	}
	return texts, nil
}

// EndLabels ends a process's labels of a NIC, except one with the text valid. A label that the
// process was started with stays open, and would describe the NIC as it was: as deleted, once
// another NIC of the process has lost its device.
func (h *Host) EndLabels(pid int, vm, nicID, valid string) error {
	op, err := h.openedBy(pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range op.Labels {
		if l.VM == vm && l.NIC == nicID && l.Text != valid {
			errs = append(errs, rtnl.IgnoreNotExist(l.EndLabel()))
		}
	}
	return errors.Join(errs...)
}
