package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"vmnet/internal/holders"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// Named lists the devices of that NIC of guests of that name, wherever they are: two users may each
// have such a guest.
func (h *Host) Named(ctx context.Context, vm, nic string) ([]Device, error) {
	all, err := h.AllDevices(ctx)
	return slices.DeleteFunc(all, func(dev Device) bool { return dev.Want.VM != vm || dev.Want.NIC != nic }), err
}

// ByName lists the devices of a guest, or of all guests if vm is empty, that were handed over by
// their names.
func (h *Host) ByName(ctx context.Context, vm string) ([]Device, error) {
	all, err := h.AllDevices(ctx)
	var found []Device
	for _, dev := range all {
		if (vm == "" || dev.Want.VM == vm) && dev.Want.Via == nic.ViaLibvirt &&
			dev.NetnsFile == nil && !dev.IsSocket() {
			found = append(found, dev)
		}
	}
	return found, err
}

// Find returns the device of a guest's NIC, wherever it is, or nil if there is none. If there are
// several, it is the one that the Target's process holds.
func (h *Host) Find(ctx context.Context, t nic.Target, nicID string) (*Device, error) {
	all, err := h.Named(ctx, t.VM, nicID)
	if err != nil {
		return nil, err
	}
	return chosen(all, t, nicID)
}

// chosen returns the device of the guest that t means, of all that have the names of guest and NIC:
// two users' guests may have one name. A NIC without a link counts only if t's process holds it, or
// if its user is trusted.
func chosen(all []Device, t nic.Target, nicID string) (*Device, error) {
	several := len(all) > 1
	all = slices.DeleteFunc(all, func(dev Device) bool {
		if t.PID == 0 {
			return dev.IsUntrusted()
		}
		return (several || !dev.HasLink()) && !dev.IsHeldBy(t.PID)
	})
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return &all[0], nil
	}
	return nil, fmt.Errorf("%w, with NIC %s: %s (name one guest with --pid)", qemu.ErrAmbiguous, nicID, Whose(all))
}

// Reread reads the same device and its holders again; nil if it is gone.
func (h *Host) Reread(ctx context.Context, dev *Device) (*Device, error) {
	all, err := h.Named(ctx, dev.Want.VM, dev.Want.NIC)
	for _, now := range all {
		if dev.sameWithoutLink(&now) || dev.HasLink() && now.HasLink() && now.NetnsInode == dev.NetnsInode &&
			now.Index == dev.Index {
			return &now, err
		}
	}
	return nil, err
}

// Refresh reads a device again, which may have changed while the caller waited for the guest's
// lock. Its holders are not read again.
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
	if err == nil {
		h.ReadOVS(ctx, &now)
	}
	return now, err
}

// Exists reports whether a device still exists. Its netns may outlive it: a VMM that was started
// with an fd of the netns keeps that.
func (h *Host) Exists(ctx context.Context, dev *Device) (bool, error) {
	if !dev.HasLink() {
		now, err := h.Reread(ctx, dev)
		return now != nil, err
	}
	err := h.On(dev, func(nl *rtnl.Conn) error {
		_, err := nl.LinkByIndex(dev.Index)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// WaitGone waits until a device is gone, or ctx ends.
func (h *Host) WaitGone(ctx context.Context, dev *Device) error {
	for {
		there, err := h.Exists(ctx, dev)
		if err != nil || !there {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf(
				"interface %s is still %w: it goes when QEMU answers and releases it, or by vmnet reconcile: %w",
				dev.Name, nic.ErrInUse, context.Cause(ctx))
		case <-time.After(PollEvery):
		}
	}
}

// WaitGoneFor is WaitGone with a timeout.
func (h *Host) WaitGoneFor(ctx context.Context, dev *Device, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return h.WaitGone(ctx, dev)
}

// PollEvery is the pause between two looks at something of which the kernel sends no event.
const PollEvery = 5 * time.Millisecond

// HeldBy reports whether a process holds the device.
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

// QueuesOf returns a process's fds that are queues of the device, ascending.
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

// LowerName returns the name of the parent device that a macvtap or ipvtap has now.
func (h *Host) LowerName(dev *Device) string {
	if l, err := h.NL.LinkByIndex(dev.Lower); err == nil {
		return l.Name
	}
	return cmp.Or(dev.Want.Source, "?")
}

// moment is what decisions need to know of the machine besides the device, which tests make up.
type moment struct {
	sinceBoot func() int64       // seconds
	isVMM     func(pid int) bool // reports whether a process is a QEMU
}

func now() moment { return moment{SinceBoot, holders.IsQEMU} }

// Do is what a verb does with a device before it asks a guest.
type Do int

// What a verb may do.
const (
	LeaveAlone Do = iota
	Remove        // nobody holds it
	AskGuest      // the VMM that holds it knows the rest
	MendAlone     // a VMM holds it that cannot be asked
)

// A Verdict is what a verb decides by a device, its record and its holders.
type Verdict struct {
	Do      Do
	Compare bool   // the device is to be compared with its record
	Note    string // what to say about it; empty for nothing
}

// ReconcileVerdict is reconcile's: it removes what nobody holds, and leaves alone what a process
// works on that is no VMM.
func (dev *Device) ReconcileVerdict() Verdict { return dev.reconcileVerdict(now()) }

func (dev *Device) reconcileVerdict(m moment) Verdict {
	switch {
	case dev.IsUnconfirmed() && dev.IsHealthy():
		return Verdict{}
	case dev.IsUnconfirmed():
		return Verdict{Note: "left alone: " + dev.UnconfirmedText()}
	case dev.isOrphaned(m):
		return Verdict{Do: Remove}
	case dev.isStarting(m):
		return Verdict{Note: "left alone: " + dev.startingText()}
	case dev.Pending:
		return Verdict{Note: "left alone: it is being attached"}
	case dev.otherHolder(m) != 0:
		return Verdict{Note: fmt.Sprintf("left alone: process %d holds it", dev.otherHolder(m))}
	case dev.vmmPID(m) == 0:
		return Verdict{Note: "left alone: who holds it cannot be seen from here"}
	case dev.IsOpenedByName():
		return Verdict{Do: MendAlone}
	}
	return Verdict{Do: AskGuest}
}

// CheckVerdict is check's: an attach that goes on is no difference, and whether one was cut short
// is known only under the guest's lock.
func (dev *Device) CheckVerdict() Verdict { return dev.checkVerdict(now()) }

func (dev *Device) checkVerdict(m moment) Verdict {
	id, attaching := dev.Want.VM+"/"+dev.Want.NIC, dev.Want.Phase == nic.PhaseAttaching
	switch {
	case dev.IsUnconfirmed() && dev.IsHealthy():
		return Verdict{}
	case dev.IsUnconfirmed():
		return Verdict{Note: fmt.Sprintf("%s: %s; %s", dev.Title(), dev.state(m), dev.UnconfirmedText())}
	case dev.isOrphaned(m) && dev.IsSocket(): // its switch is about to remove it
		return Verdict{}
	case dev.isOrphaned(m):
		return Verdict{Do: Remove}
	case dev.isStarting(m):
		return Verdict{Note: fmt.Sprintf("%s: %s", id, dev.startingText())}
	case dev.Pending, attaching && dev.otherHolder(m) != 0:
		return Verdict{Note: id + " is being attached"}
	}
	v := Verdict{Do: AskGuest, Compare: !attaching && dev.Want.Phase != nic.PhaseStarting}
	switch {
	case dev.vmmPID(m) != 0 && dev.IsOpenedByName():
		v.Do = MendAlone
	case dev.vmmPID(m) != 0:
	case dev.otherHolder(m) != 0:
		v.Do, v.Note = LeaveAlone, fmt.Sprintf("%s: process %d holds it, which is no QEMU", id, dev.otherHolder(m))
	default:
		v.Do, v.Note = LeaveAlone, id+": who holds it cannot be seen from here (as root it can)"
	}
	return v
}

// IsOpenedByName reports whether the process that opens the device by its name is its VMM: vmnet
// has made it and closed it again. Its VMM need not be a QEMU, and has no monitor that vmnet asks.
func (dev *Device) IsOpenedByName() bool {
	return dev.Want.Via == nic.ViaName && dev.Want.Phase != nic.PhaseAttaching
}

// VMMPID returns the VMM that holds the device, or 0 if the caller sees none.
func (dev *Device) VMMPID() int { return dev.vmmPID(now()) }

func (dev *Device) vmmPID(m moment) int {
	if dev.IsOpenedByName() {
		return dev.firstHolder(func(int) bool { return true })
	}
	return dev.firstHolder(m.isVMM)
}

// OtherHolder returns a process that holds the device and is no VMM, such as a vmnet that works on
// it, or 0 if the caller sees none.
func (dev *Device) OtherHolder() int { return dev.otherHolder(now()) }

func (dev *Device) otherHolder(m moment) int {
	if dev.IsOpenedByName() {
		return 0
	}
	return dev.firstHolder(func(pid int) bool { return !m.isVMM(pid) })
}

// startingFor bounds the time from the creation of a guest's device until its QEMU opens it.
const startingFor = 5 * time.Minute

// IsStarting reports whether the device was made for a guest that is about to start.
func (dev *Device) IsStarting() bool { return dev.isStarting(now()) }

func (dev *Device) isStarting(m moment) bool {
	if dev.Want.Phase != nic.PhaseStarting || len(dev.Holders) > 0 {
		return false
	}
	if dev.Want.Until != 0 {
		return m.sinceBoot() < dev.Want.Until
	}
	age := m.sinceBoot() - dev.Want.Since
	return age >= 0 && age < int64(startingFor.Seconds())
}

// SinceBoot returns CLOCK_BOOTTIME in whole seconds (/proc/uptime, proc(5)), or 0 if it cannot be
// read.
func SinceBoot() int64 {
	var seconds float64
	text, err := os.ReadFile("/proc/uptime")
	if err == nil {
		_, err = fmt.Sscan(strings.TrimSpace(string(text)), &seconds)
	}
	if err != nil {
		return 0
	}
	return int64(seconds)
}

// startingText says what a device that IsStarting waits for.
func (dev *Device) startingText() string {
	if dev.IsOpenedByName() {
		return "it waits for a VMM that opens it by its name"
	}
	return "it was made for a guest that is about to start"
}
