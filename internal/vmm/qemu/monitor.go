package qemu

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/kernel/procview"
)

// A Socket is one on which a process listens, and which may be its monitor.
type Socket struct {
	PID  int
	Name string // as it was bound: see [procview.Listener]
	// Told reports whether the command line says that it is a monitor. Else only its greeting
	// tells.
	Told bool
}

// Sockets are where the monitor of a process may be, most likely first: what the kernel says
// that the process listens on and its command line says is a monitor, the last one first, which
// leaves the first to whoever else manages the guest. Only where there is none of these, they are
// those of which the command line says nothing: to connect to another than a monitor may do
// harm, as gdb's stub stops the guest and a migration ends with its connection.
func (p Process) Sockets() ([]Socket, error) {
	if p.Libvirt {
		return nil, fmt.Errorf("%s (process %d) is %w, which holds its monitor", p.label(), p.PID, ErrLibvirt)
	}
	listeners, err := procview.Listening(p.PID)
	told := p.told(listeners)
	switch {
	case len(told) > 0:
		return told, nil
	case err != nil && len(p.Monitors) > 0: // it may not be looked into: its own word must do
		return p.written(), nil
	case err != nil:
		return nil, fmt.Errorf("%w: which sockets %s (process %d) listens on cannot be seen, and its command line has no monitor (name its socket with --qmp): %w", ErrNoMonitor, p.label(), p.PID, err)
	}
	var others []Socket
	for _, l := range listeners {
		if !p.uses(l) {
			others = append(others, Socket{PID: p.PID, Name: l.Name})
		}
	}
	if len(others) > 0 {
		return others, nil
	}
	return nil, p.noMonitor()
}

// told are the sockets of the monitors on the command line.
func (p Process) told(listeners []procview.Listener) (found []Socket) {
	for _, m := range slices.Backward(p.Monitors) {
		for _, l := range listeners {
			if m.is(l) && !slices.ContainsFunc(found, func(s Socket) bool { return s.Name == l.Name }) {
				found = append(found, Socket{p.PID, l.Name, true})
			}
		}
	}
	return found
}

// is reports whether a monitor is on a socket. Of an abstract name, NULs behind it are shown as "@"
// too.
func (m Monitor) is(l procview.Listener) bool {
	if m.Path == "" {
		return m.FD == l.FD
	}
	return m.Path == l.Name || strings.HasPrefix(m.Path, "@") && m.Path == strings.TrimRight(l.Name, "@")
}

// written are the monitors as the command line has them.
func (p Process) written() (all []Socket) {
	for _, m := range slices.Backward(p.Monitors) {
		if m.Path != "" {
			all = append(all, Socket{p.PID, m.Path, true})
		}
	}
	return all
}

// uses reports whether the command line mentions a socket, which then is no monitor's: a
// console, VNC, gdb, an incoming migration.
func (p Process) uses(l procview.Listener) bool {
	name, fd := Escape(strings.Trim(l.Name, "@")), strconv.Itoa(l.FD)
	return slices.ContainsFunc(p.args, func(arg string) bool {
		return mentions(arg, name) || parseObject(arg, "")["fd"] == fd
	})
}

// mentions reports whether a word is a value in an argument: all of it, or what is between its
// marks.
func mentions(arg, word string) bool {
	const before, after = "=:\"", ",\""
	for at := 0; word != ""; at++ {
		i := strings.Index(arg[at:], word)
		if i < 0 {
			break
		}
		at += i
		end := at + len(word)
		if (at == 0 || strings.IndexByte(before, arg[at-1]) >= 0) && (end == len(arg) || strings.IndexByte(after, arg[end]) >= 0) {
			return true
		}
	}
	return false
}

// noMonitor says what there is instead of a monitor.
func (p Process) noMonitor() error {
	const cure = "start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp"
	for _, m := range p.Monitors {
		if m.Path != "" {
			return fmt.Errorf("%w: %s (process %d) does not listen on %s any more (%s)", ErrNoMonitor, p.label(), p.PID, filepath.Clean(m.Path), cure)
		}
	}
	if len(p.Others) > 0 {
		return fmt.Errorf("%w: %s (process %d) has only %s (%s)", ErrNoMonitor, p.label(), p.PID, strings.Join(p.Others, "; "), cure)
	}
	return fmt.Errorf("%w: %s (process %d) has none on its command line, and listens on no other socket (%s)", ErrNoMonitor, p.label(), p.PID, cure)
}

func (p Process) label() string {
	if p.Name == "" {
		return "the guest"
	}
	return fmt.Sprintf("guest %q", p.Name)
}
