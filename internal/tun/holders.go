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

// QueueOf tells of which tap in the netns of that inode a file is a queue; empty
// where of none.
func QueueOf(f procfd.File, netnsInode uint64) (name string) {
	// The path differs in containers, the name of the node does not.
	if !strings.HasPrefix(f.Target, "/") || !strings.Contains(filepath.Base(f.Target), "tun") {
		return ""
	}
	name = interfaceOf(f)
	if name == "" || !inNetns(f, netnsInode) {
		return ""
	}
	return name
}

// interfaceOf reads the "iff:" line that the tun driver adds to fdinfo. It is
// empty for other files, and for a tap that was deleted under its holder.
func interfaceOf(f procfd.File) string {
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

// inNetns tells whether the tap behind the file is in that netns. fdinfo does not
// say, so a copy of the fd is asked (TUNGETDEVNETNS). Where the kernel does
// not let us, the answer is yes: whoever asks must then treat the tap as held.
func inNetns(f procfd.File, inode uint64) bool {
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
	ns, err := unix.IoctlRetInt(dup, unix.TUNGETDEVNETNS)
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
