package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

var (
	domainMonitorCommand          = procedure{qemuProgram, 1, "DOMAIN_MONITOR_COMMAND"}
	domainMonitorCommandWithFiles = procedure{qemuProgram, 7, "DOMAIN_MONITOR_COMMAND_WITH_FILES"}

	connectDomainMonitorEventRegister   = procedure{qemuProgram, 4, "CONNECT_DOMAIN_MONITOR_EVENT_REGISTER"}
	connectDomainMonitorEventDeregister = procedure{qemuProgram, 5, "CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER"}
)

// domainMonitorEvent is the number of QEMU_PROC_DOMAIN_MONITOR_EVENT.
const domainMonitorEvent = 6

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

// SubscribeMonitor is [Conn.Subscribe] for QEMU's own events of the given names, or all of them if none
// is given, of one domain, or of all if dom is nil: events of kind [Monitor]. One with more than 16 KiB counts
// as lost. It taints no domain, but a read-only connection may not.
func (c *Conn) SubscribeMonitor(ctx context.Context, dom *Domain, buffer int, names ...string) (*Subscription, error) {
	if len(names) == 0 {
		names = []string{""}
	}
	var topics []topic
	for _, name := range names {
		topics = append(topics, newTopic(Monitor, name, dom))
	}
	return c.subscribe(ctx, dom, buffer, topics)
}

// monitorEvent is which events of QEMU's are wanted: those of the name exactly, since flags are 0.
func (e *encoder) monitorEvent(name string) {
	if e.present(name != ""); name != "" {
		e.string(name)
	}
	e.uint32(0)
}

func (d *decoder) monitorEvent(e *Event) {
	e.Name = d.string()
	seconds, micros := int64(d.hyper()), int64(d.uint32())
	if seconds > 0 { // -1 where the host's clock failed
		e.Time = time.Unix(seconds, micros*1000)
	}
	// Many events may wait in a Subscription, and QEMU's process may be the guest's by now.
	if details := d.optionalString(); len(details) <= maxDetails {
		e.Details = details
	}
}

// maxDetails bounds the details of an event of QEMU's, in bytes: its own have fewer than a
// thousand, libvirt passes on 4 MiB. Longer ones are left out.
const maxDetails = 64 << 10
