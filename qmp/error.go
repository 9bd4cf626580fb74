package qmp

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrBusy is returned if a monitor does not greet: another client holds it, or QEMU is stopped.
	ErrBusy = errors.New("the monitor does not answer")
	// ErrClosed is returned once the connection has ended: QEMU has died, or Close was called.
	ErrClosed = errors.New("the monitor connection is closed")
	// ErrProtocol is returned if the peer does not speak QMP. It ends the connection.
	ErrProtocol = errors.New("not a QMP message")
	// ErrDeviceNotFound matches an [Error] of class DeviceNotFound.
	ErrDeviceNotFound = errors.New("device not found")
	// ErrNoPort is returned if the machine has no place for another hot-plugged NIC.
	ErrNoPort = errors.New("no free hot-plug port")
	// ErrGuestRefused is returned if the guest refuses an unplug (DEVICE_UNPLUG_GUEST_ERROR).
	ErrGuestRefused = errors.New("the guest refused to release the device")
	// ErrUnplugTimeout is returned if the guest has not released a device when ctx ends.
	ErrUnplugTimeout = errors.New("the guest has not released the device")
	// ErrUnanswered is returned for an undo command that was sent and that QEMU has not answered
	// yet; see [Conn.Close].
	ErrUnanswered = errors.New("no answer yet; QEMU runs the command when it reads its monitor again")
)

// errNoReply is the error of a command whose caller waits no longer.
var errNoReply = errors.New("no reply")

// Error is a refusal of a command by QEMU.
type Error struct {
	Command string // as executed: "netdev_add"
	Class   string // QapiErrorClass: "GenericError", "DeviceNotFound", "CommandNotFound", ...
	Desc    string // for people
}

// maxDesc bounds QEMU's text in an error, in bytes.
const maxDesc = 500

// Error returns what the refusal means in vmnet's words, if it has any, and QEMU's text.
func (e *Error) Error() string {
	desc := strings.Join(strings.Fields(e.Desc), " ") // on one line
	if len(desc) > maxDesc {
		desc = strings.ToValidUTF8(desc[:maxDesc], "") + "..."
	}
	if own := e.explain(); own != "" {
		return fmt.Sprintf("%s: %s (QEMU: %s)", e.Command, own, desc)
	}
	return e.Command + ": " + desc
}

// explanations say what a refusal means that QEMU words for its developers, and what helps. part is
// in QEMU's text.
var explanations = []struct{ command, part, own string }{
	// The kernel has dropped the file that monitor_get_fd looks for: it does that if the receiver
	// may open no more (unix(7), scm_detach_fds).
	{
		"getfd", "No file descriptor supplied",
		"QEMU may open no more files: raise its limit (prlimit --pid PID --nofile=65536, LimitNOFILE= of its service, ulimit -n before its start)",
	},
	{
		"add-fd", "No file descriptor supplied",
		"QEMU may open no more files: raise its limit (prlimit --pid PID --nofile=65536)",
	},
	{
		"netdev_add", "Too many open files",
		"QEMU may open no more files: raise its limit (prlimit --pid PID --nofile=65536)",
	},
	{
		"device_add", "No 'usb-bus' bus found",
		"the machine has no USB controller: start it with one (-device qemu-xhci), or choose another --model",
	},
	{
		"device_add", "does not support hotplugging",
		"the bus takes devices only when the guest is started: name another one (--device-opt bus=ID), or " + portCure,
	},
	{
		"device_add", "no slot/function available",
		"the bus is full: name another one (--device-opt bus=ID), or " + portCure,
	},
	{
		"device_add", "not a valid device model name",
		"this QEMU has no such --model (-device help lists those that it has)",
	},
	{
		"query-cpus-fast", "only after machine initialization",
		"QEMU was started with -preconfig and has no machine yet: x-exit-preconfig makes it (QMP), then attach",
	},
	{
		"device_add", "only after machine initialization",
		"QEMU was started with -preconfig and has no machine yet: x-exit-preconfig makes it (QMP), then attach",
	},
	{
		"device_add", "not allowed while migrating",
		"the guest is being migrated or saved: try again when that has ended",
	},
	{
		"device_del", "not allowed while migrating",
		"the guest is being migrated or saved: try again when that has ended",
	},
	{
		"device_add", "' not found",
		"this --model has no such property (--device-opt; -device MODEL,help lists those that it has)",
	},
	{
		"device_add",
		noROM, "QEMU does not see its ROMs: install them (ipxe-qemu), or do without one (--device-opt romfile=)",
	},
}

// noROM is in QEMU's text if QEMU does not find the boot ROM of a NIC (pci_add_option_rom in
// hw/pci/pci.c).
const noROM = "failed to find romfile"

// explain returns what the refusal means; empty if QEMU's text says it.
func (e *Error) explain() string {
	for _, x := range explanations {
		if x.command == e.Command && strings.Contains(e.Desc, x.part) {
			return x.own
		}
	}
	return ""
}

// lacksROM reports whether QEMU has refused a device only because its boot ROM is missing.
func lacksROM(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Command == "device_add" && strings.Contains(e.Desc, noROM)
}

// Is reports whether target is [ErrDeviceNotFound] and the error has the class DeviceNotFound.
func (e *Error) Is(target error) bool {
	return target == ErrDeviceNotFound && e.Class == "DeviceNotFound"
}

// refused reports whether QEMU has refused a command and so has not run it. After other errors that
// is unknown.
func refused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// ended returns why ctx has ended, as an error that matches both ctx.Err and the cause.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", ctx.Err(), cause)
}
