package inventory

import (
	"fmt"

	"vmnet/tapmgr/nic"
)

// moment is what decisions need to know of the machine besides the device, which tests make up.
type moment struct {
	sinceBoot func() int64       // seconds
	isVMM     func(pid int) bool // reports whether a process is a QEMU
}

func now() moment { return moment{SinceBoot, isQEMU} }

// Do is what a verb does with a device before it asks a guest.
type Do int

// What a verb may do.
const (
	LeaveAlone Do = iota
	Remove        // nobody holds it
	AskGuest      // the VMM that holds it knows the rest
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
		return Verdict{Note: "left alone: it was made for a guest that is about to start"}
	case dev.Pending:
		return Verdict{Note: "left alone: it is being attached"}
	case dev.otherHolder(m) != 0:
		return Verdict{Note: fmt.Sprintf("left alone: process %d holds it", dev.otherHolder(m))}
	case dev.vmmPID(m) == 0:
		return Verdict{Note: "left alone: who holds it cannot be seen from here"}
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
		return Verdict{Note: id + " was made for a guest that is about to start"}
	case dev.Pending, attaching && dev.otherHolder(m) != 0:
		return Verdict{Note: id + " is being attached"}
	}
	v := Verdict{Do: AskGuest, Compare: !attaching && dev.Want.Phase != nic.PhaseStarting}
	switch {
	case dev.vmmPID(m) != 0:
	case dev.otherHolder(m) != 0:
		v.Do, v.Note = LeaveAlone, fmt.Sprintf("%s: process %d holds it, which is no QEMU", id, dev.otherHolder(m))
	default:
		v.Do, v.Note = LeaveAlone, id+": who holds it cannot be seen from here (as root it can)"
	}
	return v
}
