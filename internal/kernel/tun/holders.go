package tun

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// LooksLikeQueue tells quickly whether a file may be a queue of a tap.
func LooksLikeQueue(f procfd.File) bool {
	// The path differs in containers, the name of the node does not.
	return strings.HasPrefix(f.Target, "/") && strings.Contains(filepath.Base(f.Target), "tun")
}

// InterfaceOf tells of which tap a file is a queue, in whatever netns that is, by the
// "iff:" line that the tun driver adds to fdinfo. It is empty for other files, and
// for a tap that was deleted under its holder.
func InterfaceOf(f procfd.File) string {
	info, err := os.Open(fmt.Sprintf("/proc/%d/fdinfo/%d", f.PID, f.FD))
	if err != nil {
		return ""
	}
	defer info.Close()
	// of a tap it is all; of another file, such as an epoll(7)'s, it may be any number of bytes
	start := make([]byte, 1024)
	n, _ := info.Read(start)
	for line := range bytes.Lines(start[:max(n, 0)]) {
		if name, ok := bytes.CutPrefix(line, []byte("iff:")); ok {
			return string(bytes.TrimSpace(name))
		}
	}
	return ""
}

// InNetns tells whether the tap behind a queue is in the netns of that inode. fdinfo does not
// say, so a copy of the fd is asked (TUNGETDEVNETNS). Where the kernel does
// not let us, the answer is yes: whoever asks must then treat the tap as held. It
// is no proof that somebody holds it; see OwnQueueOf.
func InNetns(f procfd.File, inode uint64) bool {
	dev, err := devNetns(f)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) || errors.Is(err, fs.ErrNotExist) {
		return false // ended, or closed meanwhile
	}
	return err != nil || dev == inode
}

func devNetns(f procfd.File) (inode uint64, err error) {
	err = withCopy(f, func(fd int) error { inode, err = netnsOf(fd); return err })
	return inode, err
}

// errNoQueue is returned for a file that is no queue of a tap, or is none any more.
var errNoQueue = fmt.Errorf("no queue of a tap: %w", fs.ErrNotExist)

// withCopy calls do with a copy of a process's queue (pidfd_getfd(2)), which takes the right to
// trace the process (PTRACE_MODE_ATTACH_REALCREDS, ptrace(2)) and Linux 5.6. An ioctl on another
// driver's file could have effects, or wait for a FUSE server, so the file is looked at before it
// is copied and after.
func withCopy(f procfd.File, do func(fd int) error) error {
	if st, err := f.Stat(); err != nil || !st.IsCharDevice(number) {
		return cmp.Or(err, errNoQueue)
	}
	if kept.Load() >= maxKept {
		return errors.New("processes exchange their files while they are looked at")
	}
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", f.PID, err)
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, f.FD, 0)
	if err != nil {
		return fmt.Errorf("copy fd %d of process %d: %w (needs the right to trace it)", f.FD, f.PID, err)
	}
	if !isQueue(dup) {
		letGo(dup)
		return errNoQueue
	}
	defer unix.Close(dup)
	return do(dup)
}

// kept counts the files that letGo did not close.
var kept atomic.Int32

// maxKept bounds them: after so many attempts to mislead us no process is asked any more.
const maxKept = 16

// letGo closes a copy of a file that took a queue's place between two looks. Its owner has chosen
// it: close(2) waits for the server of a FUSE file, for ever if that does not answer (fuse_flush in
// fs/fuse/file.c), and for a socket that lingers (SO_LINGER, socket(7)). Such a one stays open
// until this process ends, which waits for neither (for FUSE since Linux 6.2).
func letGo(fd int) {
	st, err := procfd.StatFD(fd)
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFIFO {
		_ = unix.Close(fd)
		return
	}
	kept.Add(1)
}

// isQueue reports whether an fd of this process is of the tun driver. Another driver's file may
// answer anything.
func isQueue(fd int) bool {
	st, err := procfd.StatFD(fd)
	return err == nil && st.IsCharDevice(number)
}

// netnsOf asks an open queue, which takes CAP_NET_ADMIN over the tap's netns.
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

// OwnQueueOf tells whether an fd of this process is surely a queue of the tap of that name in the
// netns of that inode, as a proof of who may change the tap: the fd itself is asked, and no
// answer (such as EMFILE, by the limits of whoever has started us) is a no.
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
