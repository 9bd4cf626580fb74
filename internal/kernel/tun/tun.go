// Package tun makes tap devices and opens their queues.
//
// Contracts: include/uapi/linux/if_tun.h and
// Documentation/networking/tuntap.rst of the kernel.
package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// Device is the tun driver's clone device.
const Device = "/dev/net/tun"

// flags are passed on every open, as far as the tap has them: an attach overwrites the
// device's NO_PI and VNET_HDR with the caller's.
const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// A Tap is a tap device made by Create, and the queues that this process opened. It is not
// persistent: the kernel removes it when its last queue fd is closed, here and in whatever process
// was given a copy. It belongs to root, so that to add a queue by name takes CAP_NET_ADMIN: to a
// tap without an owner anybody who may open the clone device could, and get some of its frames
// (tun_not_capable in drivers/net/tun.c). Who holds a queue can do more: give the tap to somebody
// else (TUNSETOWNER) and make it persistent (TUNSETPERSIST), which no right is asked for.
type Tap struct {
	Name string // at most 15 bytes

	ns     *netns.NS
	flags  uint16
	index  int // to be made with; 0: the kernel's choice
	queues []*os.File
}

// Create makes a new tap in ns with its first queue open. multi makes it
// IFF_MULTI_QUEUE, which every later open must match. A device of that name,
// or with that altname, is an error that Is unix.EBUSY; without CAP_NET_ADMIN it Is
// unix.EPERM.
func Create(ns *netns.NS, name string, multi bool) (*Tap, error) {
	return CreateAt(ns, name, multi, 0)
}

// CreateAt is Create for a tap of that interface index (TUNSETIFINDEX), unless it is 0. An index
// that is taken is an error that Is unix.EBUSY.
func CreateAt(ns *netns.NS, name string, multi bool, index int) (*Tap, error) {
	t := &Tap{Name: name, ns: ns, flags: flags, index: index}
	if multi {
		t.flags |= unix.IFF_MULTI_QUEUE
	}
	if err := t.open(unix.IFF_TUN_EXCL); err != nil {
		return nil, err
	}
	return t, nil
}

// CreateNumbered makes a new tap with one queue, whose name, tap0 or tap1 and so on, the kernel
// chooses. Without vnetHdr frames come without a vnet header, as a VMM needs
// it that does not know of that. Errors are those of Create.
func CreateNumbered(ns *netns.NS, vnetHdr bool) (*Tap, error) {
	f := uint16(flags)
	if !vnetHdr {
		f &^= unix.IFF_VNET_HDR
	}
	return create(ns, "tap%d", f)
}

// CreateLike makes a new tap with one queue, for whose name the kernel chooses a number in the
// place of the pattern's %d. Errors are those of Create.
func CreateLike(ns *netns.NS, pattern string) (*Tap, error) { return create(ns, pattern, flags) }

func create(ns *netns.NS, name string, flags uint16) (*Tap, error) {
	t := &Tap{Name: name, ns: ns, flags: flags}
	if err := t.open(unix.IFF_TUN_EXCL); err != nil {
		return nil, err
	}
	return t, nil
}

// AddQueue opens one more queue. The tap must have been created with multi.
func (t *Tap) AddQueue() error { return t.open(0) }

// Queues are the open queues, one fd each. They stay the Tap's: who needs one
// longer duplicates it.
func (t *Tap) Queues() []*os.File { return t.queues }

// Close closes this process's copies of the queues. Called again, it does nothing.
func (t *Tap) Close() error {
	var errs []error
	for _, q := range t.queues {
		errs = append(errs, q.Close())
	}
	t.queues = nil
	return errors.Join(errs...)
}

// open opens a queue. The order matters: the file belongs to the netns that
// the thread is in at open(2), and it becomes an os.File only when it is a tap.
func (t *Tap) open(extra uint16) error {
	var fd int
	err := t.ns.Do(func() (err error) {
		fd, err = unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return openError(err)
	}
	name := t.Name
	if extra&unix.IFF_TUN_EXCL != 0 && t.index != 0 {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, t.index)
	}
	if err == nil {
		name, err = setIff(fd, t.Name, t.flags|extra)
	}
	if err == nil && name != t.Name && !strings.HasSuffix(t.Name, "%d") {
		err = fmt.Errorf("the kernel named it %q", name)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("TUNSETIFF %s: %w", t.Name, explain(err))
	}
	t.Name = name
	if extra&unix.IFF_TUN_EXCL != 0 {
		if err := setOwner(fd); err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("TUNSETOWNER %s: %w", t.Name, err)
		}
	}
	t.queues = append(t.queues, os.NewFile(uintptr(fd), Device))
	return nil
}

// setOwner makes the tap root's, or where a user namespace has no root, this process's user's.
func setOwner(fd int) error {
	err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, 0)
	if errors.Is(err, unix.EINVAL) {
		err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, os.Geteuid())
	}
	return err
}

// setIff is TUNSETIFF; it returns the name that the kernel gave.
func setIff(fd int, name string, flags uint16) (string, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return "", err
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return "", err
	}
	return ifr.Name(), nil
}

func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w (load the driver: modprobe tun; in a container, pass the device in)",
			Device, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: %w (run as root, or give this user access to it)", Device, err)
	}
	return fmt.Errorf("open %s: %w", Device, err)
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN in the user namespace that owns the netns)", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w (a device has that name or altname already)", err)
	}
	return err
}
