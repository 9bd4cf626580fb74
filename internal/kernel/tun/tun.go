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

// flags are passed with every open, as far as the tap has them: attaching a queue overwrites NO_PI
// and VNET_HDR of the device with those of the caller.
const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// A Tap is a tap device made by Create, and the queues that this process opened. It is not
// persistent: the kernel removes it when the last queue fd is closed, in this and all other
// processes. It belongs to root, so that adding a queue by name needs CAP_NET_ADMIN. Any process
// that may open the clone device could add a queue to a tap without an owner, and receive some of
// its frames (tun_not_capable in drivers/net/tun.c). A process that holds a queue can do more:
// change the owner (TUNSETOWNER) and make the tap persistent (TUNSETPERSIST), for which the kernel
// checks no privilege.
type Tap struct {
	Name string // at most 15 bytes

	ns     *netns.NS
	flags  uint16
	index  int // of a new tap; 0 lets the kernel choose
	queues []*os.File
}

// Create makes a new tap in ns with its first queue open. multi sets IFF_MULTI_QUEUE, which every
// later open must match. If a device has that name or altname, the error matches unix.EBUSY with
// errors.Is; without CAP_NET_ADMIN, unix.EPERM.
func Create(ns *netns.NS, name string, multi bool) (*Tap, error) {
	return CreateAt(ns, name, multi, 0)
}

// CreateAt is Create for a tap with that interface index (TUNSETIFINDEX), unless it is 0. If the
// index is taken, the error matches unix.EBUSY with errors.Is.
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

// CreateBare is Create for a tap whose frames have no vnet header, so that its VMM leaves no
// checksum and no segmentation to those that receive them.
func CreateBare(ns *netns.NS, name string, multi bool) (*Tap, error) {
	f := uint16(flags &^ unix.IFF_VNET_HDR)
	if multi {
		f |= unix.IFF_MULTI_QUEUE
	}
	return create(ns, name, f)
}

// CreateNumbered makes a new tap with one queue. The kernel chooses its name: tap0, tap1 and so on.
// Without vnetHdr, frames have no vnet header, for a VMM that does not know of it. Errors are those
// of Create.
func CreateNumbered(ns *netns.NS, vnetHdr bool) (*Tap, error) {
	f := uint16(flags)
	if !vnetHdr {
		f &^= unix.IFF_VNET_HDR
	}
	return create(ns, "tap%d", f)
}

// CreateLike makes a new tap with one queue. The kernel replaces the %d of the pattern by a number.
// Errors are those of Create.
func CreateLike(ns *netns.NS, pattern string) (*Tap, error) { return create(ns, pattern, flags) }

func create(ns *netns.NS, name string, flags uint16) (*Tap, error) {
	t := &Tap{Name: name, ns: ns, flags: flags}
	if err := t.open(unix.IFF_TUN_EXCL); err != nil {
		return nil, err
	}
	return t, nil
}

// CreateTun is Create for a tun with one queue: a device for IP packets, without Ethernet headers.
func CreateTun(ns *netns.NS, name string) (*Tap, error) { return create(ns, name, tunFlags) }

const tunFlags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// OpenTun is Open for an existing tun with one queue.
func OpenTun(ns *netns.NS, name string) (*Tap, error) {
	t := &Tap{Name: name, ns: ns, flags: tunFlags}
	if err := t.open(0); err != nil {
		return nil, err
	}
	return t, nil
}

// AddQueue opens one more queue. The tap must have been created with multi.
func (t *Tap) AddQueue() error { return t.open(0) }

// Queues returns the open queues, one fd each. The Tap keeps ownership and closes them in Close.
func (t *Tap) Queues() []*os.File { return t.queues }

// Close closes this process's fds of the queues. A second call does nothing.
func (t *Tap) Close() error {
	var errs []error
	for _, q := range t.queues {
		errs = append(errs, q.Close())
	}
	t.queues = nil
	return errors.Join(errs...)
}

// open opens a queue. The order matters: the file belongs to the thread's netns at the time of
// open(2), and it may become an os.File only after TUNSETIFF.
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

// setOwner makes root the owner of the tap or, if the user namespace has no root, the user of this
// process.
func setOwner(fd int) error {
	err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, 0)
	if errors.Is(err, unix.EINVAL) {
		err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, os.Geteuid())
	}
	return err
}

// setIff calls TUNSETIFF and returns the name that the kernel has chosen.
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

// Open opens queues of an existing tap, such as a persistent one. multi must match the tap
// (IFF_MULTI_QUEUE); without it, queues must be 1. If the caller has neither CAP_NET_ADMIN nor the
// uid of the tap's owner, the error matches unix.EPERM with errors.Is; if the only queue is held,
// unix.EBUSY. If there is no tap of that name, the kernel makes one: check before.
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
