package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
)

var (
	domainMonitorCommand          = procedure{qemuProgram, 1, "DOMAIN_MONITOR_COMMAND", aString}
	domainMonitorCommandWithFiles = procedure{
		qemuProgram, 7, "DOMAIN_MONITOR_COMMAND_WITH_FILES", aString,
	}
)

// isQMP marks a command as QMP, not as one of QEMU's human monitor.
const isQMP = 0

// MonitorCommand sends a QMP command, a JSON object, to a running domain's QEMU, and returns QEMU's
// reply unchanged: {"return": ...} or {"error": ...}. libvirt marks the domain as tainted
// (custom-monitor) until it ends.
func (c *Conn) MonitorCommand(ctx context.Context, dom Domain, command string) (reply string, err error) {
	p := &call{procedure: domainMonitorCommand, text: []string{dom.Name, command}}
	return ask(ctx, c, p, func() (string, error) {
		return c.lib.QEMUDomainMonitorCommand(dom.to(), command, isQMP)
	})
}

// MonitorCommandWithFiles is [Conn.MonitorCommand] with files for QEMU, for a command like getfd.
// The caller closes its files; QEMU accepts one per command. The caller also closes the returned
// files; no command of current QEMU versions returns any. It needs libvirt 8.2; with an older one,
// the error matches [ErrUnsupported].
func (c *Conn) MonitorCommandWithFiles(ctx context.Context, dom Domain, command string,
	files ...*os.File,
) (reply string, received []*os.File, err error) {
	text := []string{dom.Name, command}
	p := &call{procedure: domainMonitorCommandWithFiles, text: text, files: files}
	reply, err = ask(ctx, c, p, func() (string, error) {
		return c.lib.QEMUDomainMonitorCommandWithFiles(dom.to(), command, isQMP)
	})
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Code == codeRPC {
		err = fmt.Errorf("%w: %w (libvirt passes files to QEMU since 8.2)", ErrUnsupported, err)
	}
	if err != nil {
		return "", nil, err
	}
	return reply, p.received, nil
}
