package macvtap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// A Device is a macvtap or ipvtap, and the fds of this process that keep it. Its methods are for
// one goroutine at a time, and none may be called after Close but Close.
type Device struct {
	dev    *macvlan.Device
	parent string
}

// Info returns the state of the device, which it reads from the kernel.
func (d *Device) Info() (Info, error) {
	l, err := d.dev.Read()
	if err != nil {
		return Info{}, err
	}
	return infoOf(l, d.parent), nil
}

// OpenQueue opens one more queue, with a vnet header and multi-queue (IFF_VNET_HDR,
// IFF_MULTI_QUEUE). The kernel sends frames to it at once. OpenQueue needs neither udev nor a node
// in /dev, but CAP_SYS_ADMIN and CAP_MKNOD.
func (d *Device) OpenQueue() error { return d.dev.OpenQueue() }

// Queues returns the open queues, in the order in which they were opened. The Device keeps
// ownership and closes them in Close: a VMM that inherits or receives them has copies, and keeps
// the device.
func (d *Device) Queues() []*os.File { return d.dev.Queues() }

// Netns returns a copy of the fd of the device's namespace, which the caller owns. It keeps the
// device as a queue does, and gives its holder access to the namespace.
func (d *Device) Netns() (*os.File, error) { return d.dev.Netns().File() }

// Up brings the device up. The kernel then refuses an address that another device on the same
// parent device has.
func (d *Device) Up() error { return d.dev.Up() }

// SetMAC changes the address of a macvtap.
func (d *Device) SetMAC(mac net.HardwareAddr) error { return d.dev.Set(rtnl.MAC(mac)) }

// SetMTU changes the MTU, in bytes. It is at most the parent device's.
func (d *Device) SetMTU(mtu int) error { return d.dev.Set(rtnl.MTU(mtu)) }

// SetAlias changes the text that the kernel stores with the device (IFLA_IFALIAS, at most 255
// bytes).
func (d *Device) SetAlias(text string) error { return d.dev.Set(rtnl.Alias(text)) }

// AddAltName gives the device another name, of at most 127 bytes.
func (d *Device) AddAltName(name string) error { return d.dev.AddAltName(name) }

// AddAddr gives an ipvtap an address of its guest. The kernel delivers only what is sent to such an
// address.
func (d *Device) AddAddr(p netip.Prefix) error { return d.dev.AddAddr(p) }

// SetMode changes the mode. The kernel refuses to change to or from passthru. If it changes the
// mode of an ipvtap, it changes that of all others on the parent device too.
func (d *Device) SetMode(mode string) error {
	kind := vtap.Kind(d.dev.Link.Kind)
	if modes := vtap.Modes(kind); !slices.Contains(modes, mode) {
		return fmt.Errorf("%s mode %q: want %s", kind, mode, strings.Join(modes, ", "))
	}
	if mode == "source" {
		return errors.New("mode source needs source addresses (use SetSources)")
	}
	return macvlan.SetMode(d.dev.NL(), d.dev.Link, mode)
}

// SetSources changes a macvtap that is not in mode passthru to mode source, in which it receives
// only the frames of these senders.
func (d *Device) SetSources(senders []net.HardwareAddr) error {
	if kind := vtap.Kind(d.dev.Link.Kind); kind != vtap.Macvtap {
		return fmt.Errorf("an %s has no source addresses", kind)
	}
	return macvlan.SetSources(d.dev.NL(), d.dev.Link, senders)
}

// SetAllMulti makes the device receive the frames of all multicast groups, or only of those that
// SetGroups names.
func (d *Device) SetAllMulti(on bool) error { return d.dev.Set(rtnl.AllMulti(on)) }

// SetGroups makes groups the multicast addresses that the device receives, at most vtap.MaxGroups.
// The device filters by a hash of 256 values, so that frames for other groups may pass too. changed
// reports whether the kernel has changed the list.
func (d *Device) SetGroups(groups []net.HardwareAddr) (changed bool, err error) {
	return macvlan.SetGroups(d.dev.Netns(), d.dev.Link, groups)
}

// Groups returns the multicast addresses that SetGroups has set.
func (d *Device) Groups() ([]net.HardwareAddr, error) {
	return macvlan.Groups(d.dev.Netns(), d.dev.Link)
}

// Delete removes the device at once, if it still exists. After the last close, the kernel would do
// so with a delay. No process may still hold a queue.
func (d *Device) Delete() error { return d.dev.Delete() }

// Close closes all fds that this Device has. The kernel then removes the device unless another
// process has a copy of one. A second call does nothing.
func (d *Device) Close() error { return d.dev.Close() }
