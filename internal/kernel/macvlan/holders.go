package macvlan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// QueuesOf returns the fds of a process that are queues of a device, in ascending order.
// ns is the device's namespace. Only the device number identifies them, since the node's
// path is gone.
func QueuesOf(pid int, ns *netns.NS, l *rtnl.Link) ([]int, error) {
	d := &Device{Link: l, ns: ns, kind: vtap.Kind(l.Kind)}
	var dev uint64
	err := ns.Do(func() (err error) { dev, err = d.number(); return err })
	if err != nil {
		return nil, err
	}
	var fds []int
	procfd.Of(pid, func(f procfd.File) {
		if !LooksLikeQueue(f) {
			return
		}
		if number, ok := NumberOf(f); ok && number == dev {
			fds = append(fds, f.FD)
		}
	})
	slices.Sort(fds)
	return fds, nil
}

// NumberOf returns the device number of a file that may be a queue, in the form of Number. It never
// waits for the file's file system, which may be FUSE and not answer.
func NumberOf(f procfd.File) (number uint64, ok bool) {
	st, err := f.Stat()
	return st.Rdev, err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR
}

// LooksLikeQueue reports whether a file may be a queue of a macvtap or ipvtap, by its path alone:
// it is that of OpenQueue's node, which is detached, or /dev/tapN.
func LooksLikeQueue(f procfd.File) bool {
	return strings.HasPrefix(f.Target, "/") && strings.HasPrefix(filepath.Base(f.Target), nodeName)
}

// Found is a device that Everywhere has found.
type Found struct {
	*rtnl.Link
	NetnsID int // the id of the device's netns in the netns of the socket
}

// Everywhere lists the devices in all netns that have an id in nl's netns, such as those that
// Create has made on parent devices there. It also finds devices whose queues and netns no process
// has open, because the fds wait in a socket's queue or are registered with io_uring, or because a
// mount pins the netns. If the parent device is in nl's netns, LowerNS is the id of nl's netns in
// itself, which the kernel assigns when it reports the first such device. Everywhere skips netns
// that nl may not read.
func Everywhere(nl *rtnl.Conn) (found []Found, err error) {
	ids, err := nl.NetnsIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		for _, kind := range []vtap.Kind{vtap.Macvtap, vtap.IPVtap} {
			links, err := nl.LinksIn(id, string(kind))
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
				continue
			case err != nil:
				return nil, err
			}
			for _, l := range links {
				found = append(found, Found{l, id})
			}
		}
	}
	return found, nil
}

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
