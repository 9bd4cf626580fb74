package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
)

var (
	domainMonitorCommand          = procedure{qemuProgram, 1, "DOMAIN_MONITOR_COMMAND"}
	domainMonitorCommandWithFiles = procedure{qemuProgram, 7, "DOMAIN_MONITOR_COMMAND_WITH_FILES"}
)

// MonitorCommand gives a running domain's QEMU a QMP command, a JSON object, and returns QEMU's
// reply, whole and as it is: {"return": ...} or {"error": ...}. Libvirt marks the domain as
// tainted (custom-monitor) for the rest of its run.
func (c *Conn) MonitorCommand(ctx context.Context, dom Domain, command string) (reply string, err error) {
	err = c.call(ctx, domainMonitorCommand, monitorArgs(dom, command), func(d *decoder) { reply = d.string() })
	return reply, err
}

// MonitorCommandWithFiles is [Conn.MonitorCommand] with files for QEMU, which a command like getfd
// takes; they stay the caller's. QEMU takes one with a command. Files in return are the
// caller's to close; no command of QEMU's has any today. It needs libvirt 8.2; an
// older one's refusal Is [ErrUnsupported].
func (c *Conn) MonitorCommandWithFiles(ctx context.Context, dom Domain, command string, files ...*os.File) (reply string, received []*os.File, err error) {
	received, err = c.callWithFiles(ctx, domainMonitorCommandWithFiles, monitorArgs(dom, command), func(d *decoder) { reply = d.string() }, files)
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Code == codeRPC {
		err = fmt.Errorf("%w: %w (libvirt passes files to QEMU since 8.2)", ErrUnsupported, err)
	}
	return reply, received, err
}

func monitorArgs(dom Domain, command string) func(*encoder) {
	return func(e *encoder) {
		e.domain(dom)
		e.string(command)
		e.uint32(0) // QMP
	}
}
