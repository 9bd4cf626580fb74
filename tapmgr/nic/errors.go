package nic

import "errors"

// What the errors of this package can be asked for with errors.Is, besides the
// cause: the errno, fs.ErrNotExist, the errors of packages qmp and qemu.
var (
	// ErrInvalid is returned for a Spec that is inconsistent.
	ErrInvalid = errors.New("invalid request")
	// ErrExist is returned where another NIC has that id, or another device that name.
	ErrExist = errors.New("exists already")
	// ErrLink is a failure on the host: device, port, vhost.
	ErrLink = errors.New("host side")
	// ErrHandover is a failure to hand the NIC to the VMM.
	ErrHandover = errors.New("hand-over")
	// ErrOtherGuest is returned where a process or monitor is not that of the named guest.
	ErrOtherGuest = errors.New("another guest")
	// ErrInUse is returned where a running process still holds the device.
	ErrInUse = errors.New("in use")
)
