package libvirt

import (
	"errors"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

var (
	// ErrNoConnection means that the daemon cannot be reached, went away, or has no QEMU driver.
	ErrNoConnection = errors.New("no connection to libvirt")
	// ErrClosed means that Close was called on the connection.
	ErrClosed = errors.New("the connection to libvirt is closed")
	// ErrProtocol means that the daemon sent a message that violates libvirt's protocol.
	ErrProtocol = errors.New("not libvirt's protocol")

	// ErrNoDomain means that the domain does not exist.
	ErrNoDomain = errors.New("no such domain")
	// ErrNoMetadata means that the domain has no metadata of that namespace.
	ErrNoMetadata = errors.New("no such metadata")
	// ErrOperationInvalid means that the domain's state does not allow it: it is not running.
	ErrOperationInvalid = errors.New("not possible in this state")
	// ErrAccessDenied means that this user or a read-only connection may not do that.
	ErrAccessDenied = errors.New("access denied by libvirt")
	// ErrUnsupported means that this libvirt, driver or configuration cannot do that.
	ErrUnsupported = errors.New("not supported by this libvirt")
	// ErrTimeout means that the domain is busy with another job, or that its QEMU does not answer.
	ErrTimeout = errors.New("timed out in libvirt")
)

// Code is libvirt's number of an error: virErrorNumber.
type Code int32

// The codes of the errors above.
const (
	codeNoSupport            = Code(golibvirt.ErrNoSupport)
	codeNoConnect            = Code(golibvirt.ErrNoConnect)
	codeOperationDenied      = Code(golibvirt.ErrOperationDenied)
	codeRPC                  = Code(golibvirt.ErrRPC) // also a procedure that the daemon does not have
	codeNoDomain             = Code(golibvirt.ErrNoDomain)
	codeAuthFailed           = Code(golibvirt.ErrAuthFailed)
	codeOperationInvalid     = Code(golibvirt.ErrOperationInvalid)
	codeConfigUnsupported    = Code(golibvirt.ErrConfigUnsupported)
	codeOperationTimeout     = Code(golibvirt.ErrOperationTimeout)
	codeArgumentUnsupported  = Code(golibvirt.ErrArgumentUnsupported)
	codeAuthCancelled        = Code(golibvirt.ErrAuthCancelled)
	codeNoMetadata           = Code(golibvirt.ErrNoDomainMetadata)
	codeOperationUnsupported = Code(golibvirt.ErrOperationUnsupported)
	codeAccessDenied         = Code(golibvirt.ErrAccessDenied)
	codeAuthUnavailable      = Code(golibvirt.ErrAuthUnavailable)
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

// Error is an error that libvirt returned for a call (virNetMessageError). Many codes match one of
// this package's errors with errors.Is, such as [ErrNoDomain].
type Error struct {
	Procedure string // REMOTE_PROC_... or QEMU_PROC_..., without the prefix
	Code      Code
	Domain    int32 // the part of libvirt that it is from: virErrorDomain
	Level     int32 // virErrorLevel; 2 is an error
	Message   string
}

// Error returns the procedure, libvirt's message and its error code.
func (e *Error) Error() string {
	message := e.Message
	if message == "" {
		message = "no reason given"
	}
	return fmt.Sprintf("%s: %s (libvirt's error %d)", e.Procedure, message, e.Code)
}

// Is reports whether target is this package's error for the code.
func (e *Error) Is(target error) bool {
	sentinel := e.Code.sentinel()
	return sentinel != nil && sentinel == target
}

// decodeError reads a virNetMessageError. go-libvirt would drop its domain and level, take code 0
// for success, and search the message for an unknown procedure. The fields after the level repeat
// parts of the message.
func decodeError(procedure string, payload []byte) error {
	d := decoder{buf: payload}
	e := &Error{
		Procedure: procedure,
		Code:      Code(d.int32()),
		Domain:    d.int32(),
		Message:   d.optionalString(),
		Level:     d.int32(),
	}
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
