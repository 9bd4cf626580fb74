package qemu

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/kernel/procview"
)

// A Socket is a socket on which a process listens, and which may be its monitor.
type Socket struct {
	PID  int
	Name string // as it was bound: see [procview.Listener]
	// Told reports whether the command line says that it is a monitor. Otherwise only the greeting
	// shows it.
	Told bool
}

// Sockets returns the sockets that may be the monitor of a process, most likely first. They are the
// sockets on which the process listens, according to the kernel, and which its command line calls
// monitors, the last one first: the first is left to another manager of the guest. Only if there
// are none does it return sockets that the command line does not mention: connecting to one that is
// not a monitor may do harm, as gdb's stub stops the guest and a migration ends with its
// connection.
func (p Process) Sockets() ([]Socket, error) {
	if p.Libvirt {
		return nil, fmt.Errorf("%s (process %d) is %w, which holds its monitor", p.label(), p.PID, ErrLibvirt)
	}
	listeners, err := procview.Listening(p.PID)
	told := p.told(listeners)
	switch {
	case len(told) > 0:
		return told, nil
	case err != nil && len(p.Monitors) > 0: // the caller may not look into it: rely on its command line
		return p.written(), nil
	case err != nil:
		return nil,
			fmt.Errorf(
				"%w: the sockets of %s (process %d) cannot be seen, and its command line has no monitor (name its socket with --qmp): %w",
				ErrNoMonitor, p.label(), p.PID, err)
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

// told returns the sockets of the monitors on the command line.
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

// is reports whether a monitor is on a socket. NULs after an abstract name are shown as "@" too.
func (m Monitor) is(l procview.Listener) bool {
	if m.Path == "" {
		return m.FD == l.FD
	}
	return m.Path == l.Name || strings.HasPrefix(m.Path, "@") && m.Path == strings.TrimRight(l.Name, "@")
}

// written returns the monitors as written on the command line.
func (p Process) written() (all []Socket) {
	for _, m := range slices.Backward(p.Monitors) {
		if m.Path != "" {
			all = append(all, Socket{p.PID, m.Path, true})
		}
	}
	return all
}

// uses reports whether the command line mentions a socket, which then is not a monitor's: a
// console, VNC, gdb, an incoming migration.
func (p Process) uses(l procview.Listener) bool {
	name, fd := Escape(strings.Trim(l.Name, "@")), strconv.Itoa(l.FD)
	return slices.ContainsFunc(p.args, func(arg string) bool {
		return mentions(arg, name) || parseObject(arg, "")["fd"] == fd
	})
}

// mentions reports whether a word is a value in an argument: all of it, or a part between its
// separators.
func mentions(arg, word string) bool {
	const before, after = "=:\"", ",\""
	for at := 0; word != ""; at++ {
		i := strings.Index(arg[at:], word)
		if i < 0 {
			break
		}
		at += i
		end := at + len(word)
		if (at == 0 || strings.IndexByte(before, arg[at-1]) >= 0) && (end == len(arg) ||
			strings.IndexByte(after, arg[end]) >= 0) {
			return true
		}
	}
	return false
}

// noMonitor explains what there is instead of a monitor.
func (p Process) noMonitor() error {
	const cure = "start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp"
	for _, m := range p.Monitors {
		if m.Path != "" {
			return fmt.Errorf("%w: %s (process %d) no longer listens on %s (%s)", ErrNoMonitor, p.label(), p.PID,
				filepath.Clean(m.Path), cure)
		}
	}
	if len(p.Others) > 0 {
		return fmt.Errorf("%w: %s (process %d) has only %s (%s)", ErrNoMonitor, p.label(), p.PID,
			strings.Join(p.Others, "; "), cure)
	}
	return fmt.Errorf("%w: %s (process %d) has none on its command line, and listens on no other socket (%s)",
		ErrNoMonitor, p.label(), p.PID, cure)
}

func (p Process) label() string {
	if p.Name == "" {
		return "the guest"
	}
	return fmt.Sprintf("guest %q", p.Name)
}
