package tun

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// LooksLikeQueue reports whether a file may be a queue of a tap, by its path alone.
func LooksLikeQueue(f procfd.File) bool {
	// Containers may have another path, but not another name of the node.
	return strings.HasPrefix(f.Target, "/") && strings.Contains(filepath.Base(f.Target), "tun")
}

// InterfaceOf returns the name of the tap of which a file is a queue, in the tap's own netns. The
// tun driver reports it in fdinfo, as "iff:". The result is empty for other files, and for a tap
// that was deleted while a process held it.
func InterfaceOf(f procfd.File) string {
	// 1 KiB is enough for a tap; that of another file, such as an epoll(7), may be of any length
	start, err := procfd.ReadStart(f.PID, fmt.Sprintf("fdinfo/%d", f.FD), 1024)
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(start) {
		if name, ok := bytes.CutPrefix(line, []byte("iff:")); ok {
			return string(bytes.TrimSpace(name))
		}
	}
	return ""
}

// InNetns reports whether the tap of a queue is in the netns with that inode. fdinfo does not have
// it, so InNetns asks a copy of the fd (TUNGETDEVNETNS). If the kernel refuses that, InNetns
// returns true, so that the caller treats the tap as held. That proves nothing about the process:
// see OwnQueueOf.
func InNetns(f procfd.File, inode uint64) bool {
	dev, err := devNetns(f)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) || errors.Is(err, fs.ErrNotExist) {
		return false // the process has ended, or has closed the file
	}
	return err != nil || dev == inode
}

func devNetns(f procfd.File) (inode uint64, err error) {
	err = withCopy(f, func(fd int) error { inode, err = netnsOf(fd); return err })
	return inode, err
}

// noQueue is the error for a file that is not a queue of a tap, or no longer one. It is a type of
// its own since a call of fmt.Errorf before main would cost each start of the bridge helper 40 µs.
type noQueue struct{}

func (noQueue) Error() string { return "not a queue of a tap: " + fs.ErrNotExist.Error() }
func (noQueue) Unwrap() error { return fs.ErrNotExist }

// withCopy calls do with a copy of a process's queue (pidfd_getfd(2)). It needs permission to trace
// the process (PTRACE_MODE_ATTACH_REALCREDS in ptrace(2)) and Linux 5.6. An ioctl on a file of
// another driver could have effects, or wait for a FUSE server, so withCopy inspects the file
// before and after it is copied.
func withCopy(f procfd.File, do func(fd int) error) error {
	if st, err := f.Stat(); err != nil || !st.IsCharDevice(number) {
		return cmp.Or(err, error(noQueue{}))
	}
	if kept.Load() >= maxKept {
		return errors.New("processes replace their files while these are inspected")
	}
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", f.PID, err)
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, f.FD, 0)
	if err != nil {
		return fmt.Errorf("copy fd %d of process %d: %w (needs permission to trace it)", f.FD, f.PID, err)
	}
	if !isQueue(dup) {
		release(dup)
		return noQueue{}
	}
	defer unix.Close(dup)
	return do(dup)
}

// onQueueOf calls do with a copy of a process's queue of a tap (pidfd_getfd(2)). inode is that of
// the tap's netns. If the process has no such queue, the error matches fs.ErrNotExist with
// errors.Is. It needs permission to trace the process (PTRACE_MODE_ATTACH_REALCREDS in ptrace(2))
// and Linux 5.6.
func onQueueOf(pid int, name string, inode uint64, do func(fd int) error) error {
	err := fmt.Errorf("process %d holds no queue of %s: %w", pid, name, fs.ErrNotExist)
	procfd.Of(pid, func(f procfd.File) {
		if !errors.Is(err, fs.ErrNotExist) || !LooksLikeQueue(f) || InterfaceOf(f) != name {
			return
		}
		err = withCopy(f, func(fd int) error {
			if !OwnQueueOf(fd, name, inode) {
				return fmt.Errorf("fd %d of process %d is not a queue of %s: %w", f.FD, f.PID, name, fs.ErrNotExist)
			}
			return do(fd)
		})
	})
	return err
}

// Inject sends frames as if the guest had sent them, by a copy of the queue of the process that
// holds the tap: they pass whatever the guest's own frames pass. See onQueueOf for its errors. A
// frame begins with its Ethernet header.
func Inject(pid int, name string, inode uint64, frames ...[]byte) error {
	return onQueueOf(pid, name, inode, func(fd int) error {
		// The guest's driver has chosen the length of the virtio_net_hdr.
		size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
		if err != nil {
			return fmt.Errorf("TUNGETVNETHDRSZ %s: %w", name, err)
		}
		for _, f := range frames {
			if _, err := unix.Write(fd, append(make([]byte, size), f...)); err != nil {
				return fmt.Errorf("write a frame to %s: %w", name, err)
			}
		}
		return nil
	})
}

// kept counts the files that release did not close.
var kept atomic.Int32

// maxKept bounds them: after that many attempts to mislead us, withCopy copies no more files.
const maxKept = 16

// release closes a copy of a file that a process has put in the place of a queue. The process may
// have chosen one for which close(2) waits: a FUSE file whose server does not answer (fuse_flush in
// fs/fuse/file.c), or a socket that lingers (SO_LINGER in socket(7)). Such a copy stays open until
// this process ends. The kernel then waits for neither (for FUSE since Linux 6.2).
func release(fd int) {
	st, err := procfd.StatFD(fd)
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFIFO {
		_ = unix.Close(fd)
		return
	}
	kept.Add(1)
}

// isQueue reports whether an fd of this process is a file of the tun driver. A file of another
// driver may give any answer.
func isQueue(fd int) bool {
	st, err := procfd.StatFD(fd)
	return err == nil && st.IsCharDevice(number)
}

// netnsOf returns the inode of the tap's netns from an open queue. It needs CAP_NET_ADMIN over that
// netns.
func netnsOf(fd int) (inode uint64, err error) {
	ns, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// OwnQueueOf reports whether an fd of this process is certainly a queue of the tap with that name
// in the netns with that inode. It serves as proof that a caller may change the tap, so it asks the
// fd itself and returns false on any error, such as EMFILE by a limit that the caller has set.
func OwnQueueOf(fd int, name string, inode uint64) bool {
	if !isQueue(fd) {
		return false
	}
	ifr, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) != nil || ifr.Name() != name {
		return false
	}
	found, err := netnsOf(fd)
	return err == nil && found == inode
}

// number is the device number of the clone device: MISC_MAJOR in include/uapi/linux/major.h,
// TUN_MINOR in include/linux/miscdevice.h.
var number = unix.Mkdev(10, 200)
