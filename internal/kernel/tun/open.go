package tun

import (
	"errors"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// Open opens queues of a tap that is there, as one that was made persistent is. multi must be as
// the tap has been made (IFF_MULTI_QUEUE), and without it queues must be 1. It needs CAP_NET_ADMIN
// or to be the tap's owner, else the error Is unix.EPERM; a single queue that is held Is
// unix.EBUSY. Without a tap of that name one would be made: ask first.
func Open(ns *netns.NS, name string, multi bool, queues int) (*Tap, error) {
	t := &Tap{Name: name, ns: ns, flags: flags}
	if multi {
		t.flags |= unix.IFF_MULTI_QUEUE
	}
	for range queues {
		if err := t.open(0); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}
