package tun

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
)

// Persist keeps the tap when its last queue is closed (TUNSETPERSIST), so that another process can
// open it by its name. Who has owner's uid may do that without CAP_NET_ADMIN; 0 is root.
func (t *Tap) Persist(owner int) error {
	fd := int(t.queues[0].Fd())
	if owner != 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner); err != nil {
			return fmt.Errorf("TUNSETOWNER %s: %w", t.Name, err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUNSETPERSIST %s: %w", t.Name, err)
	}
	return nil
}

// Expire removes a persistent tap that nobody holds. Unlike RTM_DELLINK it cannot take it from
// under a process that opens it in the same moment: that one finds a single-queue tap busy, and
// keeps one of several queues, as long as it holds it. A single-queue tap that is held Is
// unix.EBUSY. One that is not there is success.
func Expire(ns *netns.NS, name string, multi bool) error {
	t := &Tap{Name: name, ns: ns, flags: flags}
	if multi {
		t.flags |= unix.IFF_MULTI_QUEUE
	}
	if err := t.open(0); err != nil {
		return err
	}
	err := unix.IoctlSetInt(int(t.queues[0].Fd()), unix.TUNSETPERSIST, 0)
	return errors.Join(err, t.Close())
}

// Unpersist lets a tap go with the process that holds it: TUNSETPERSIST 0 on a copy of that one's
// own queue (pidfd_getfd(2)), since a queue opened for it would get some of the guest's frames.
// inode is that of the tap's netns. A process that has no such queue is an error that Is
// fs.ErrNotExist. It needs the right to trace the process (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS)
// and Linux 5.6.
func Unpersist(pid int, name string, inode uint64) error {
	err := fmt.Errorf("process %d holds no queue of %s: %w", pid, name, fs.ErrNotExist)
	procfd.Of(pid, func(f procfd.File) {
		if errors.Is(err, fs.ErrNotExist) && LooksLikeQueue(f) && InterfaceOf(f) == name {
			err = unpersist(f, name, inode)
		}
	})
	return err
}

func unpersist(f procfd.File, name string, inode uint64) error {
	return withCopy(f, func(fd int) error {
		if !OwnQueueOf(fd, name, inode) {
			return fmt.Errorf("fd %d of process %d is no queue of %s: %w", f.FD, f.PID, name, fs.ErrNotExist)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
			return fmt.Errorf("TUNSETPERSIST %s: %w", name, err)
		}
		return nil
	})
}
