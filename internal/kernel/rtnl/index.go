package rtnl

import "math/rand/v2"

// The range of RandomIndex: the kernel counts up from 1, and its own index is an int.
const (
	minIndex = 1 << 20
	maxIndex = 1 << 30
)

// RandomIndex returns an interface index for a device that a VMM opens by its name. QEMU and
// libvirt take such a device for a macvtap where /dev/tap<index> exists, whatever netns that one's
// device is in, and every user who may make a user namespace can make some at the next indices that
// the kernel would choose. That it is taken is for the caller to find out.
func RandomIndex() int { return minIndex + rand.IntN(maxIndex-minIndex) }
