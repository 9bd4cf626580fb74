package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// Persist makes the tap outlive its last queue (TUNSETPERSIST), so that another process can open it
// by its name. A process with the uid owner needs no CAP_NET_ADMIN for that. 0 is root.
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

// Unpersist makes the tap end with its last queue.
func (t *Tap) Unpersist() error {
	if err := unix.IoctlSetInt(int(t.queues[0].Fd()), unix.TUNSETPERSIST, 0); err != nil {
		return fmt.Errorf("TUNSETPERSIST %s: %w", t.Name, err)
	}
	return nil
}

// Expire removes a persistent tap that no process holds. Unlike RTM_DELLINK, it cannot remove the
// tap from a process that opens it at the same time: that process finds a single-queue tap busy,
// and keeps a multi-queue tap for as long as it holds it. If a single-queue tap is held, the error
// matches unix.EBUSY with errors.Is. It is no error if the tap does not exist.
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

// Unpersist makes a tap end with the process that holds it, by TUNSETPERSIST 0 on a copy of the
// process's own queue: a queue that Unpersist opened would receive some of the guest's frames. See
// onQueueOf for its errors.
func Unpersist(pid int, name string, inode uint64) error {
	return onQueueOf(pid, name, inode, func(fd int) error {
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
			return fmt.Errorf("TUNSETPERSIST %s: %w", name, err)
		}
		return nil
	})
}
