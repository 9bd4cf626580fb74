// Package guestfile is the NICs that a guest should have, as data: what the guest's file in
// /etc/vmnet/guests.d says, how that is read and written, and what it takes to make it so. It
// touches no guest. docs/man/vmnet-guests.5.md describes the file.
package guestfile

import (
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"

	"vmnet/tapmgr/nic"
)

// Guest is what a file says of a guest.
type Guest struct {
	VM   string
	User string // who runs its VMM: a name or a uid; empty for the caller, or libvirt
	NICs []NIC  // in the order of the file; all others that the guest has are to be detached
}

// NIC is what a file says of a NIC.
type NIC struct {
	State State
	// Spec is complete but for the process; of an Absent NIC only the names count.
	Spec nic.Spec
	// Unknown says that the NIC is described from its record, which lacks options of its device or
	// parent device. Only Format reads it.
	Unknown bool
}

// State is what should be of a NIC.
type State string

const (
	// Up is the default: the NIC is attached, and its link up.
	Up State = "up"
	// Down is attached, with a link that is down.
	Down State = "down"
	// Absent is not attached, as if the file did not name it.
	Absent State = "absent"
)

// maxUser bounds the name of a user, in bytes.
const maxUser = 256

// UID returns the user who runs the guest's VMM. ok is false if the file names none.
func (g *Guest) UID() (uid int, ok bool, err error) {
	if g.User == "" {
		return 0, false, nil
	}
	// An id is decimal, as programs print one: 010 and 0x10 are names, which no user has.
	if id, err := strconv.ParseUint(g.User, 10, 31); err == nil && strconv.FormatUint(id, 10) == g.User {
		return int(id), true, nil
	}
	u, err := user.Lookup(g.User)
	if err != nil {
		return 0, false, fmt.Errorf("guest %s: user %q: %w", g.VM, g.User, err)
	}
	uid, err = strconv.Atoi(u.Uid)
	return uid, true, err
}

// MAC returns the address that the guest's NIC of that id gets, also if the file does not name the
// NIC. It is nil for a NIC that gets the address of its parent device.
func (g *Guest) MAC(id string) net.HardwareAddr {
	i := slices.IndexFunc(g.NICs, func(n NIC) bool { return n.Spec.NIC == id })
	if i < 0 {
		return nic.DefaultMAC(g.VM, id)
	}
	return g.NICs[i].Spec.WithDefaults().MAC
}

// Add adds a NIC that the guest has, from its record and whether libvirt has stored it.
func (g *Guest) Add(r nic.Record, stored bool) {
	n := NIC{State: Up, Spec: r.Spec(), Unknown: r.Options != ""}
	s := &n.Spec
	s.Persistent = stored
	if s.LinkDown {
		n.State = Down
	}
	s.Vhost = nic.VhostAuto // the record says what it came to be, not whether that was asked for
	if s.Via == nic.ViaLibvirt {
		s.Via = "" // which is the default of guests that libvirt manages
	}
	if s.Model == nic.DefaultModel {
		s.Model = ""
	}
	if s.Queues == 1 {
		s.Queues = 0
	}
	s.MAC = nil
	if mac := s.WithDefaults().MAC; mac != nil && mac.String() != r.MAC.String() {
		s.MAC = r.MAC
	}
	g.NICs = append(g.NICs, n)
}
