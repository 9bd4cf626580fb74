package macvlan

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
	"vmnet/macvtap/vtap"
)

// CountOf counts the macvtaps and ipvtaps of which processes with that real uid hold queues. It
// sees only processes whose fds the caller may read.
func CountOf(uid int) (int, error) {
	text, err := os.ReadFile("/proc/devices")
	if err != nil {
		return 0, fmt.Errorf("read the device numbers of macvtaps: %w", err)
	}
	majors := majorsOf(string(text))
	if len(majors) == 0 { // neither driver is loaded
		return 0, nil
	}
	pids, err := procfd.PIDs()
	if err != nil {
		return 0, err
	}
	devices := map[uint64]bool{}
	quick := uid == os.Geteuid() && ownProc()
	for _, pid := range pids {
		if quick && notOurs(pid) {
			continue
		}
		if owner, err := procfd.RealUID(pid); err != nil || owner != uid {
			continue
		}
		procfd.Of(pid, func(f procfd.File) {
			if !LooksLikeQueue(f) {
				return
			}
			if number, ok := NumberOf(f); ok && slices.Contains(majors, unix.Major(number)) {
				devices[number] = true
			}
		})
	}
	return len(devices), nil
}

// notOurs reports whether a process's real uid certainly differs from our effective uid: otherwise
// kill(2) would permit the signal. It takes a hundredth of the time that reading /proc takes. A
// refusal by a security module is EACCES.
func notOurs(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.EPERM) }

// ownProc reports whether /proc numbers processes as kill(2) does, by our PID namespace.
func ownProc() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// majorsOf parses the major numbers of both kinds from /proc/devices (proc_devices(5)). The names
// are those that drivers/net/macvtap.c and drivers/net/ipvlan/ipvtap.c register.
func majorsOf(text string) (majors []uint32) {
	text, _, _ = strings.Cut(text, "Block devices:")
	for line := range strings.Lines(text) {
		number, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != string(vtap.Macvtap) && name != string(vtap.IPVtap) {
			continue
		}
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			majors = append(majors, uint32(n))
		}
	}
	return majors
}
