package inventory

import (
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/tapmgr/nic"
)

// deadNICs are the NICs whose device was deleted under their VMM: it holds a label that none of the
// NICs that are there goes with, and a queue that leads nowhere. all are those NICs. A label alone,
// as a VMM keeps it that was started with it after a detach, is no NIC.
func deadNICs(op *openFiles, all []Device) (found []Device) {
	queues := map[int]int{} // dead ones, by process
	for _, l := range op.labels {
		there := slices.ContainsFunc(all, func(dev Device) bool {
			return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && (len(dev.Holders) == 0 || dev.IsHeldBy(l.PID))
		})
		if l.Type == nic.TypeSocket || there || slices.ContainsFunc(found, func(dev Device) bool { return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && dev.IsHeldBy(l.PID) }) {
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

// deadQueues counts the queues of a process that are those of no device any more: of a tap the
// kernel has no name for the fd, and of a macvtap it has the number of the node, by which no NIC
// has the fd.
func deadQueues(op *openFiles, pid int, all []Device) (n int) {
	for _, f := range op.nodes[pid] {
		if !isQueueOf(all, f) {
			n++
		}
	}
	procfd.First(pid, maxEarly, func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == "" {
			n++
		}
	})
	return n
}

// isQueueOf reports whether a file is a queue of one of these NICs.
func isQueueOf(all []Device, f procfd.File) bool {
	return slices.ContainsFunc(all, func(dev Device) bool {
		return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return h.PID == f.PID && slices.Contains(h.FDs, f.FD) })
	})
}

func deadNIC(l label) Device {
	r := l.Record
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: r.Type, MTU: r.GuestMTU()}
	return Device{Link: link, Want: r, Deleted: true, allSeen: true, UID: l.uid, vouched: isTrusted(l.uid), Holders: []nic.Holder{{PID: l.PID, FDs: []int{}}}}
}

// EndLabels ends what labels of a process say of a NIC that it has no more: one that it was started
// with stays open, and would tell of the NIC when another one of the process has lost its device.
func (h *Host) EndLabels(pid int, vm, nicID string) error {
	op, err := h.openedBy(pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range op.labels {
		if l.VM == vm && l.NIC == nicID {
			errs = append(errs, rtnl.IgnoreNotExist(l.EndLabel()))
		}
	}
	return errors.Join(errs...)
}

// goneFinding is the one thing that is to be said of a NIC without its device.
func goneFinding(v *View) Finding {
	on, with := "bridge "+v.Want.Source, ""
	switch {
	case v.Want.Switch:
		on = "switch " + v.Want.Source
	case v.Want.Type != nic.TypeTap:
		on, with = v.Want.Source, ", most likely with its parent device"
	}
	r := Remedy{By: nic.MendAttach, Cure: fmt.Sprintf("%s; the same vmnet attach again does so and replaces it, once %s is there", v.detachCommand(), v.Want.Source)}
	return Finding{"device on the host", fmt.Sprintf("a %s on %s", v.Want.Type, on), "none: it was deleted under the guest" + with, r}
}
