package libvirt

import (
	"errors"
	"fmt"
)

var (
	// ErrNoConnection is a daemon that cannot be reached, that went away, or that has no QEMU driver.
	ErrNoConnection = errors.New("no connection to libvirt")
	// ErrClosed is a connection on which Close was called.
	ErrClosed = errors.New("the connection to libvirt is closed")
	// ErrProtocol is an answer that libvirt cannot have meant.
	ErrProtocol = errors.New("not libvirt's protocol")

	// ErrNoDomain is a domain that does not exist.
	ErrNoDomain = errors.New("no such domain")
	// ErrNoMetadata is a domain without metadata of that namespace.
	ErrNoMetadata = errors.New("no such metadata")
	// ErrOperationInvalid is what the domain's state does not allow: it is not running.
	ErrOperationInvalid = errors.New("not possible in this state")
	// ErrAccessDenied is what this user, or a read-only connection, may not do.
	ErrAccessDenied = errors.New("access denied by libvirt")
	// ErrUnsupported is what this libvirt, driver or configuration cannot do.
	ErrUnsupported = errors.New("not supported by this libvirt")
	// ErrTimeout is a domain that is busy with another job, or a QEMU that does not answer.
	ErrTimeout = errors.New("timed out in libvirt")
)

// Code is what was wrong: virErrorNumber.
type Code int32

// The codes (VIR_ERR_...) that the sentinels stand for.
const (
	codeNoSupport            Code = 3
	codeNoConnect            Code = 5
	codeOperationDenied      Code = 29
	codeRPC                  Code = 39 // also a procedure that the daemon does not have
	codeNoDomain             Code = 42
	codeAuthFailed           Code = 45
	codeOperationInvalid     Code = 55
	codeConfigUnsupported    Code = 67
	codeOperationTimeout     Code = 68
	codeArgumentUnsupported  Code = 74
	codeAuthCancelled        Code = 79
	codeNoMetadata           Code = 80
	codeOperationUnsupported Code = 84
	codeAccessDenied         Code = 88
	codeAuthUnavailable      Code = 94
)

func (c Code) sentinel() error {
	switch c {
	case codeNoConnect:
		return ErrNoConnection
	case codeNoDomain:
		return ErrNoDomain
	case codeNoMetadata:
		return ErrNoMetadata
	case codeOperationInvalid:
		return ErrOperationInvalid
	case codeAccessDenied, codeOperationDenied, codeAuthFailed, codeAuthCancelled, codeAuthUnavailable:
		return ErrAccessDenied
	case codeNoSupport, codeOperationUnsupported, codeConfigUnsupported, codeArgumentUnsupported:
		return ErrUnsupported
	case codeOperationTimeout:
		return ErrTimeout
	}
	return nil
}

// Error is libvirt's refusal of a call (virNetMessageError). Several of its codes Are
// one of this package's sentinels: errors.Is(err, [ErrNoDomain]).
type Error struct {
	Procedure string // REMOTE_PROC_... or QEMU_PROC_..., without the prefix
	Code      Code
	Domain    int32 // what part of libvirt it is from: virErrorDomain
	Level     int32 // virErrorLevel; 2 is an error
	Message   string
}

func (e *Error) Error() string {
	message := e.Message
	if message == "" {
		message = "no reason given"
	}
	return fmt.Sprintf("%s: %s (libvirt's error %d)", e.Procedure, message, e.Code)
}

// Is tells whether the code stands for target.
func (e *Error) Is(target error) bool {
	sentinel := e.Code.sentinel()
	return sentinel != nil && sentinel == target
}

// decodeError reads a virNetMessageError: the fields between level and the end repeat, as
// text, what is in the message.
func decodeError(procedure string, payload []byte) error {
	d := decoder{buf: payload}
	e := &Error{Procedure: procedure, Code: Code(d.int32()), Domain: d.int32(), Message: d.optionalString(), Level: d.int32()}
	if d.present() {
		d.domain()
	}
	for range 3 {
		d.optionalString()
	}
	d.int32()
	d.int32()
	if d.present() { // a network
		d.string()
		d.uuid()
	}
	if err := d.end(); err != nil {
		return fmt.Errorf("%s: %w: error message: %w", procedure, ErrProtocol, err)
	}
	return e
}
