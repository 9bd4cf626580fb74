package qemu

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Running is what one look at /proc has shown of the QEMUs that run.
type Running struct {
	All     []Process
	doubted []doubtful
}

// Look reads all of /proc, once. See [List].
func Look() (Running, error) {
	found, doubted, err := list(isQEMU)
	return Running{found, doubted}, err
}

// Find returns the one QEMU of the calling user whose guest has that name. It refuses another
// user's, since any user can give a process any name: such a guest must be named by its pid.
func (r Running) Find(name string) (Process, error) { return r.find(name, os.Geteuid()) }

func (r Running) find(name string, caller int) (Process, error) {
	var own, others []Process
	for _, p := range r.All {
		switch {
		case p.Name != name:
		case p.UID == caller:
			own = append(own, p)
		default:
			others = append(others, p)
		}
	}
	switch {
	case len(own) == 1:
		return own[0], nil
	case len(own) > 1:
		return Process{}, fmt.Errorf("%w: %q: processes %s (name one with --pid)", ErrAmbiguous, name, pids(own))
	case len(others) > 0:
		p := others[0]
		return Process{}, fmt.Errorf("%w: %q runs as %s (name it with --pid %d if that is the guest you mean)",
			ErrOtherUser, name, userName(p.UID), p.PID)
	}
	for _, d := range r.doubted {
		if d.Name == name {
			return Process{}, fmt.Errorf("%w: no running QEMU is %q, and one that claims to be is not trusted: %w",
				ErrNotFound, name, d.why)
		}
	}
	return Process{},
		fmt.Errorf("%w: no running QEMU has -name guest=%s (running: %s; --pid or --qmp name one without a name)",
			ErrNotFound, name, names(r.All))
}

// OfLibvirt returns those of all users whose command line says that libvirt started them for the
// guest of that name. Libvirt must confirm one of them by its UUID.
func (r Running) OfLibvirt(name string) (found []Process) {
	for _, p := range r.All {
		if p.Libvirt && p.Name == name {
			found = append(found, p)
		}
	}
	return found
}

// OfLibvirt is [Running.OfLibvirt] with a look at /proc of its own.
func OfLibvirt(name string) ([]Process, error) {
	r, err := Look()
	return r.OfLibvirt(name), err
}

func pids(ps []Process) string {
	var s []string
	for _, p := range ps {
		s = append(s, strconv.Itoa(p.PID))
	}
	return strings.Join(s, ", ")
}

// maxNames bounds how many guests an error text lists.
const maxNames = 10

func names(ps []Process) string {
	var s []string
	for _, p := range ps {
		name := strconv.Quote(p.Name) // anybody's process may be called anything
		if p.Name == "" {
			name = fmt.Sprintf("process %d", p.PID)
		}
		if s = append(s, name); len(s) == maxNames {
			s = append(s, "...")
			break
		}
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}
