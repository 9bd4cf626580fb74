package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/internal/access/privilege"
)

// Helper is the program that makes NICs for users without privilege, as far as the policy allows.
const Helper = "qemu-netup"

// FindHelper finds the program that vmnet runs if its user has no privilege.
func (m Machine) FindHelper() (path string, found bool) { return m.find(Helper, m.helperDirs()) }

// helperDirs lists the directories where vmnet looks for the helper, in that order.
func (m Machine) helperDirs() []string {
	return append([]string{m.Self, filepath.Join(m.Self, "../libexec/vmnet")}, m.Path...)
}

func (m Machine) helper() []Check {
	path, found := m.FindHelper()
	if !found {
		return warn("helper", "make install PRIVILEGE=setuid, or setcap",
			"%s is neither beside vmnet nor in $PATH: users other than root can have NICs on userspace switches only",
			Helper)
	}
	checks := ok("helper", "%s", path)
	if wrong, cure := m.unsafe(path); wrong != "" {
		checks = append(checks, fail("helper owner", cure, "%s: a user who can write it has its privilege", wrong)...)
	} else {
		checks = append(checks,
			ok("helper owner", "it and its directories belong to root, and no other user can write them")...)
	}
	return append(append(checks, m.right(path)...), m.full(path)...)
}

// Full is the program that the helper becomes for most of its commands.
const Full = "qemu-netup-full"

// full checks that it exists and is safe to become.
func (m Machine) full(helper string) []Check {
	const name = "helper's forms"
	dir := filepath.Dir(helper)
	path, found := m.find(Full, []string{filepath.Join(dir, "../libexec/vmnet"), dir})
	if !found {
		return warn(name, "make install",
			"%s is not where make install puts it: unless this %s is all in one, it does only what QEMU asks its bridge helper for",
			Full, Helper)
	}
	if wrong, cure := m.unsafe(path); wrong != "" {
		return fail(name, cure, "%s: a user who can write it has the privilege of %s", wrong, Helper)
	}
	info, err := os.Stat(m.at(path))
	if err != nil {
		return fail(name, "", "%v", err)
	}
	if _, caps, _ := readCaps(m.at(path)); caps || info.Mode()&fs.ModeSetuid != 0 {
		return fail(name, fmt.Sprintf("chmod u-s %s; setcap -r %s", path, path),
			"%s has privilege of its own, which only the helper should give it", path)
	}
	return ok(name, "%s, without privilege of its own", path)
}

// unsafe explains why users other than root can write a file, or put another in its place.
func (m Machine) unsafe(file string) (wrong, cure string) {
	way, err := privilege.Way(m.at(file))
	if err != nil {
		return err.Error(), ""
	}
	for _, path := range slices.Backward(way) {
		rest, within := strings.CutPrefix(path, strings.TrimSuffix(m.Root, "/"))
		if !within {
			continue
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err.Error(), ""
		}
		if privilege.RootsOwn(info) {
			continue
		}
		name := filepath.Clean("/" + rest)
		switch uid := info.Sys().(*syscall.Stat_t).Uid; {
		case uid != 0 && info.Mode()&fs.ModeSymlink != 0:
			return fmt.Sprintf("the link %s belongs to uid %d", name, uid), "chown -h root " + name
		case uid != 0:
			return fmt.Sprintf("%s belongs to uid %d", name, uid), "chown root " + name
		}
		return fmt.Sprintf("%s has mode %04o", name, unixMode(info.Mode())), "chmod go-w " + name
	}
	return "", ""
}

// unixMode returns the mode as chmod(1) writes it.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&flag != 0 {
			mode |= bit
		}
	}
	return mode
}

// helperCaps are the capabilities with which the helper makes taps, and has their frames checked
// and limited.
const helperCaps = "cap_net_admin,cap_bpf,cap_perfmon+ep"

// right checks the privilege that the helper has and its user has not.
func (m Machine) right(path string) []Check {
	const name = "helper right"
	real := m.at(path)
	info, err := os.Stat(real)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	caps, hasCaps, err := readCaps(real)
	if err != nil {
		return fail(name, "setcap "+helperCaps+" "+path, "%v", err)
	}
	setuid := info.Mode()&fs.ModeSetuid != 0
	uid := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !setuid && !hasCaps:
		return warn(name, fmt.Sprintf("as root: setcap %s %s, or chmod u+s %[2]s", helperCaps, path),
			"mode %04o and no capabilities: only root can use it", unixMode(info.Mode()))
	case noSuid(real):
		return fail(name, "install it on another file system, or mount this one with the option suid",
			"its file system is mounted with the option nosuid: the kernel gives it no privilege")
	case setuid && uid != 0:
		return fail(name, fmt.Sprintf("chown root %s && chmod u+s %s", path, path),
			"it is setuid to uid %d, which is not root", uid)
	case !setuid && (!caps.has(unix.CAP_NET_ADMIN) || !caps.Effective || caps.Root != 0):
		return fail(name, "setcap "+helperCaps+" "+path, "its capabilities (%s) are not cap_net_admin+ep", caps)
	case unix.Access(real, unix.X_OK) != nil:
		return warn(name, fmt.Sprintf("join its group (ls -l %s), and log in again", path),
			"mode %04o: you may not execute it", unixMode(info.Mode()))
	case m.noNewPrivs():
		return warn(name, "run it outside of the sandbox or container that set that",
			"this process has no_new_privs: programs that it starts get no privilege")
	case setuid:
		return ok(name, "setuid root, mode %04o", unixMode(info.Mode()))
	}
	if !caps.has(unix.CAP_SYS_ADMIN) || !caps.has(unix.CAP_MKNOD) {
		lacks := "--macvtap and --ipvtap"
		if !caps.has(unix.CAP_BPF) || !caps.has(unix.CAP_PERFMON) {
			lacks = "--macvtap, --ipvtap and --port-security"
		}
		return ok(name, "file capabilities %s, mode %04o: NICs on bridges; %s need a helper that is setuid root",
			caps, unixMode(info.Mode()), lacks)
	}
	return ok(name, "file capabilities %s, mode %04o", caps, unixMode(info.Mode()))
}

// noSuid reports whether the file system ignores setuid bits and file capabilities.
func noSuid(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOSUID != 0
}

func (m Machine) noNewPrivs() bool {
	status, err := m.read("/proc/self/status")
	return err == nil && strings.Contains(status, "\nNoNewPrivs:\t1\n")
}
