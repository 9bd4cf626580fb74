// Package tapmgr gives guests their NICs: it makes the tap, puts it on its
// bridge, hands its queues to the VMM, and takes all of that away again.
//
// The kernel is the only database. What a NIC should be stands in the alias of
// its link (IFLA_IFALIAS); what it is, is read from the kernel and the VMM each
// time. A device lives as long as its VMM holds its fds, so nothing outlives a guest.
//
// The VMM's monitor is the lock of a guest: it serves one client at a time, and
// is connected to before the first device is made and until the last step is done.
package tapmgr

import "errors"

// What the errors of this package can be asked for with errors.Is, besides the
// cause: the errno, fs.ErrNotExist, the errors of packages qmp and qemu.
var (
	// ErrInvalid is a Spec that makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrExist is a NIC of that id that is not as asked for, or a name that is taken.
	ErrExist = errors.New("exists already")
	// ErrLink is a failure on the host's side: device, port, vhost.
	ErrLink = errors.New("host side")
	// ErrHandover is a failure to give the NIC to the VMM.
	ErrHandover = errors.New("hand-over")
	// ErrOtherGuest is a process or monitor that belongs to another guest than the one named.
	ErrOtherGuest = errors.New("another guest")
	// ErrInUse is a link that a living process holds.
	ErrInUse = errors.New("in use")
)
