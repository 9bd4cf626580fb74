package qemu

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// Find returns the one running QEMU of the calling user whose guest has that name. It refuses
// another user's, since any user can give a process any name: such a guest must be named by its
// pid.
func Find(name string) (Process, error) {
	all, doubted, err := list()
	if err != nil {
		return Process{}, err
	}
	var ours, others []Process
	for _, p := range all {
		switch {
		case p.Name != name:
		case p.UID == os.Geteuid():
			ours = append(ours, p)
		default:
			others = append(others, p)
		}
	}
	switch {
	case len(ours) == 1:
		return ours[0], nil
	case len(ours) > 1:
		return Process{}, fmt.Errorf("%w: %q: processes %s (name one with --pid)", ErrAmbiguous, name, pids(ours))
	case len(others) > 0:
		p := others[0]
		return Process{}, fmt.Errorf("%w: %q runs as %s (name it with --pid %d if that is the guest you mean)", ErrOtherUser, name, userName(p.UID), p.PID)
	}
	for _, d := range doubted {
		if d.Name == name {
			return Process{}, fmt.Errorf("%w: no running QEMU is %q, and one that claims to be is not believed: %w", ErrNotFound, name, d.why)
		}
	}
	return Process{}, fmt.Errorf("%w: no running QEMU has -name guest=%s (running: %s; --pid or --qmp name one without a name)", ErrNotFound, name, names(all))
}

// OfLibvirt returns the running QEMUs of all users whose command line says that libvirt started
// them for the guest of that name. Libvirt must confirm one of them by its UUID.
func OfLibvirt(name string) ([]Process, error) {
	return filter(func(p Process) bool { return p.Libvirt && p.Name == name })
}

func filter(wanted func(Process) bool) ([]Process, error) {
	all, err := List()
	return slices.DeleteFunc(all, func(p Process) bool { return !wanted(p) }), err
}

func pids(ps []Process) string {
	var s []string
	for _, p := range ps {
		s = append(s, strconv.Itoa(p.PID))
	}
	return strings.Join(s, ", ")
}

// maxNames bounds how many guests an error lists.
const maxNames = 10

func names(ps []Process) string {
	var s []string
	for _, p := range ps {
		name := strconv.Quote(p.Name) // any user can give a process any name
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
