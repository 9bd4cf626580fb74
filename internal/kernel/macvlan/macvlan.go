// Package macvlan makes macvtap and ipvtap devices, and finds their queues.
//
// A Device lives as long as its fds. It is made in an unnamed network namespace, and
// its queues are opened from inside. Each queue's socket pins that namespace, and so
// does the namespace's own fd. When the last of them is closed, the kernel removes
// the namespace and the device.
//
// Contracts: include/uapi/linux/if_link.h, drivers/net/macvlan.c, macvtap.c, tap.c and
// drivers/net/ipvlan/ of the kernel.
package macvlan

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// txQLen is the length of the ring of frames that wait for the VMM. The kernel's default is 500
// (TUN_READQ_SIZE in include/uapi/linux/if_tun.h).
const txQLen = 1000

// tries limits how often newLink retries because the index is taken.
const tries = 128

// A Device is a macvtap or ipvtap, and the fds of this process that keep it.
type Device struct {
	Link *rtnl.Link // as read after it was made

	ns     *netns.NS
	nl     *rtnl.Conn
	kind   vtap.Kind
	node   *os.File // the directory that has its node, which OpenQueue opens
	queues []*os.File
}

// Create makes a device on a parent device, which is in nl's namespace. The device is down
// and in a netns of its own. Create needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for the netns.
func Create(nl *rtnl.Conn, parent *rtnl.Link, cfg vtap.Config) (*Device, error) {
	if err := check(parent, cfg); err != nil {
		return nil, err
	}
	ns, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("%w (a %s gets a netns of its own, which needs CAP_SYS_ADMIN)", err, cfg.Kind)
	}
	d := &Device{ns: ns, kind: cfg.Kind}
	if err := d.create(nl, parent, cfg); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Device) create(nl *rtnl.Conn, parent *rtnl.Link, cfg vtap.Config) (err error) {
	if d.nl, err = rtnl.Open(d.ns); err != nil {
		return err
	}
	if err := nl.AssignNetnsID(d.ns); err != nil { // see Everywhere
		return err
	}
	attrs, err := attrsOf(parent, cfg)
	if err != nil {
		return err
	}
	attrs = append(attrs, rtnl.Netns(d.ns))
	err = newLink(nl, parent, cfg, func(index int) error {
		return nl.Create(string(cfg.Kind), append(slices.Clone(attrs), rtnl.Index(index))...)
	})
	if err != nil {
		return err
	}
	d.Link, err = d.nl.Link(cfg.Name)
	return err
}

// newLink calls create with a random index, which other netns are unlikely to use.
func newLink(nl *rtnl.Conn, parent *rtnl.Link, cfg vtap.Config, create func(index int) error) error {
	for try := 1; ; try++ {
		err := create(rtnl.RandomIndex())
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) || try == tries {
			return fmt.Errorf("create %s on %s: %w", cfg.Kind, parent.Name, Explain(nl, err, cfg.Kind, parent))
		}
	}
}

// attrsOf returns the attributes of cfg for RTM_NEWLINK.
func attrsOf(parent *rtnl.Link, cfg vtap.Config) ([]rtnl.Attr, error) {
	attrs := []rtnl.Attr{rtnl.Name(cfg.Name), rtnl.Lower(parent.Index), rtnl.TxQLen(txQLen)}
	if cfg.MTU != 0 {
		attrs = append(attrs, rtnl.MTU(cfg.MTU))
	}
	if cfg.Kind == vtap.IPVtap {
		return append(attrs, rtnl.IPVlanMode(ipvlanModes.of(cfg.Mode)), rtnl.IPVlanFlags(ipvlanFlags.of(cfg.Flag))), nil
	}
	if cfg.MAC != nil {
		attrs = append(attrs, rtnl.MAC(cfg.MAC))
	}
	attrs = append(attrs, rtnl.MacvlanMode(macvlanModes.of(cfg.Mode)))
	if cfg.NoPromisc {
		attrs = append(attrs, rtnl.MacvlanNoPromisc())
	}
	if len(cfg.Sources) > 0 {
		attrs = append(attrs, rtnl.MacvlanSources(cfg.Sources)...)
	}
	return attrs, nil
}

// NL returns a netlink socket in the device's netns. The Device keeps ownership.
func (d *Device) NL() *rtnl.Conn { return d.nl }

// AddAltName gives the device another name (altname).
func (d *Device) AddAltName(name string) error { return d.nl.AddAltName(d.Link.Index, name) }

// Set changes settings of the device, in its own netns.
func (d *Device) Set(attrs ...rtnl.Attr) error { return d.nl.Set(d.Link.Index, attrs...) }

// AddAddr gives an ipvtap an address of its guest. The kernel delivers only what is sent to such an
// address.
func (d *Device) AddAddr(p netip.Prefix) error { return d.nl.AddAddr(d.Link.Index, p) }

// Up brings the device up. The kernel then refuses an address that another device on the same
// parent device has.
func (d *Device) Up() error { return Up(d.nl, d.Link) }

// Delete removes the device at once. After the last close, the kernel would do so with a
// delay. No process may still hold a queue.
func (d *Device) Delete() error {
	err := d.nl.Delete(d.Link.Index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Read reads the device's link again.
func (d *Device) Read() (*rtnl.Link, error) { return d.nl.LinkByIndex(d.Link.Index) }

// Queues returns the open queues. The Device keeps ownership.
func (d *Device) Queues() []*os.File { return d.queues }

// Netns returns the namespace of the device. The Device keeps ownership. A copy of its
// fd keeps the device alive and gives its holder access to the namespace.
func (d *Device) Netns() *netns.NS { return d.ns }

// Close closes all fds that this Device has. The kernel then removes the device unless another
// process has a copy of one. A second call does nothing.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	d.queues = nil
	if d.node != nil {
		errs = append(errs, d.node.Close())
		d.node = nil
	}
	if d.nl != nil {
		d.nl.Close() // a netlink socket pins its netns as well
		d.nl = nil
	}
	if d.ns != nil {
		errs = append(errs, d.ns.Close())
		d.ns = nil
	}
	return errors.Join(errs...)
}
