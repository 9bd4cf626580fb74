// Package vhostuser is the backend of vhost-user (docs/interop/vhost-user.rst of QEMU) for network
// devices: a frontend, such as a QEMU, shares its guest's memory and the rings of a virtio-net
// device over a unix socket, and a [Device] takes the guest's frames from there and puts frames
// there. No frame causes a system call but those that wake a side that waits.
//
// # What a frontend and its guest may do
//
// The guest owns the rings and the buffers, and the frontend the messages and the files. Both may
// be hostile. Package virtq reads each word of a ring once and checks it. Headers are copied before
// anything looks at them, and the copy is what is sent. The rest of a long frame stays in the
// guest's memory until it is copied to where it goes ([Received]), and nothing decides by it.
// Memory comes only from files that cannot keep an access waiting, and if it is gone, only this
// device's session ends (package guestmem). A message has at most maxBody bytes and maxFiles files.
// A file that notifies must be an eventfd. This package reads one only to end a write that its
// frontend lets block ([Device.Tick]).
//
// # Locks
//
// Device.mu is held for reading while frames are handled, from Receive until Done, and for writing
// while a message changes memory or rings: when a frontend has the answer, its memory is not read
// any more. Send takes it with TryRLock, so that it never waits for messages. A ring to the guest
// has a lock of its own, since several goroutines send. Other guests are woken by Done, when the
// lock of the device from which the frames come is free again.
package vhostuser
