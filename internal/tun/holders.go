package tun

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/procfd"
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
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", f.PID, f.FD))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(info) {
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
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, f.FD, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dup)
	return netnsOf(dup)
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
	// Another driver's file, such as one of FUSE, may answer anything.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(miscMajor, tunMinor) {
		return false
	}
	ifr, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) != nil || ifr.Name() != name {
		return false
	}
	found, err := netnsOf(fd)
	return err == nil && found == inode
}

// The device number of the clone device: MISC_MAJOR in include/uapi/linux/major.h, TUN_MINOR in
// include/linux/miscdevice.h.
const (
	miscMajor = 10
	tunMinor  = 200
)
