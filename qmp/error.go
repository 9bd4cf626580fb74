package qmp

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrBusy is a monitor that has not greeted: another client holds it, or QEMU is stopped.
	ErrBusy = errors.New("the monitor does not answer")
	// ErrClosed is a connection that has ended: QEMU died, or Close was called.
	ErrClosed = errors.New("the monitor connection is closed")
	// ErrProtocol is a peer that does not speak QMP. It ends the connection.
	ErrProtocol = errors.New("not a QMP message")
	// ErrDeviceNotFound matches an [Error] of class DeviceNotFound.
	ErrDeviceNotFound = errors.New("device not found")
	// ErrNoPort is a machine without a place for another hot-plugged NIC.
	ErrNoPort = errors.New("no free hot-plug port")
	// ErrGuestRefused is a guest that answered an unplug with a refusal (DEVICE_UNPLUG_GUEST_ERROR).
	ErrGuestRefused = errors.New("the guest refused to let go of the device")
	// ErrUnplugTimeout is a guest that did not react to an unplug in time.
	ErrUnplugTimeout = errors.New("the guest has not let go of the device (is it still booting, paused or without ACPI?)")
	// ErrUnanswered is an undo command that QEMU has been sent but has not answered yet; see [Conn.Close].
	ErrUnanswered = errors.New("no answer yet; QEMU runs the command when it reads its monitor again")
)

// errNoReply is a command that nobody waits for any more.
var errNoReply = errors.New("no reply")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string // as executed: "netdev_add"
	Class   string // QapiErrorClass: "GenericError", "DeviceNotFound", "CommandNotFound", ...
	Desc    string // for people
}

// maxDesc bounds what an error repeats of QEMU's words, in bytes.
const maxDesc = 500

func (e *Error) Error() string {
	desc := strings.Join(strings.Fields(e.Desc), " ") // on one line
	if len(desc) > maxDesc {
		desc = strings.ToValidUTF8(desc[:maxDesc], "") + "..."
	}
	return e.Command + ": " + desc
}

// Is makes an Error of class DeviceNotFound match [ErrDeviceNotFound].
func (e *Error) Is(target error) bool {
	return target == ErrDeviceNotFound && e.Class == "DeviceNotFound"
}

// refused tells QEMU's own refusal from a command whose fate is unknown.
func refused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// ended says why ctx ended; the result matches both ctx.Err and the cause.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", ctx.Err(), cause)
}
