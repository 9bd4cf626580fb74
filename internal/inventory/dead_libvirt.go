package inventory

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// A device that libvirt opens by its name has no label in QEMU, which libvirt alone could hand
// over. When it was deleted, libvirt still knows what it was.

// LibvirtNIC is a NIC of vmnet's as libvirt knows it, whether its device is there or not.
type LibvirtNIC struct {
	nic.Record
	Interface string // name of its device
	PID       int    // its guest's VMM
}

// deadOfLibvirt are NICs as deadNICs, of libvirt's guests. Libvirt is asked of those processes
// alone that hold a queue of no device that is known; all are the NICs that are there.
func (h *Host) deadOfLibvirt(ctx context.Context, op *openFiles, all []Device) (found []Device) {
	if h.OfLibvirt == nil {
		return nil
	}
	suspects := op.suspects(all)
	if len(suspects) == 0 {
		return nil
	}
	for _, n := range h.OfLibvirt(ctx, suspects) {
		there := slices.ContainsFunc(all, func(dev Device) bool { return dev.Want.VM == n.VM && dev.Want.NIC == n.NIC })
		if _, err := h.NL.Link(n.Interface); there || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		found = append(found, Device{
			Link: &rtnl.Link{Name: n.Interface, Kind: n.Type, MTU: n.GuestMTU()}, Want: n.Record, Deleted: true, allSeen: true,
			UID: os.Geteuid(), vouched: true, // by libvirt, which the caller has chosen
			Holders: []nic.Holder{{PID: n.PID, FDs: []int{}}},
		})
	}
	return found
}

// suspects are the processes that hold a queue of a tap that is gone, or of a macvtap of which none
// of these NICs has the file: it may be libvirt's own.
func (op *openFiles) suspects(all []Device) []int {
	found := maps.Clone(op.orphans)
	for pid, files := range op.nodes {
		if !found[pid] && slices.ContainsFunc(files, func(f procfd.File) bool { return !isQueueOf(all, f) }) {
			found[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
