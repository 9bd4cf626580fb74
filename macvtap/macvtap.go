// Package macvtap makes macvtap and ipvtap devices: taps that sit directly on a
// network card, their lower, without a bridge.
//
// A Device follows the law of lifetime: it is made in a network namespace that has no
// name, and its queues are opened from inside. Each queue's socket pins that
// namespace, and so does the namespace's own fd; when the last of them is closed, by
// whomever, the kernel removes namespace and device.
//
// Contracts: include/uapi/linux/if_link.h, drivers/net/macvlan.c, macvtap.c, tap.c and
// drivers/net/ipvlan/ of the kernel.
package macvtap

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// Kind is "macvtap" or "ipvtap".
type Kind string

// The two kinds.
const (
	Macvtap Kind = "macvtap"
	IPVtap  Kind = "ipvtap"
)

// Config says how a new device should be.
type Config struct {
	Kind  Kind
	Name  string     // in its own netns, at most 15 bytes
	Lower *rtnl.Link // as read in the namespace that it is in

	Mode      string             // of Modes(Kind)
	MAC       net.HardwareAddr   // macvtap only: an ipvtap has its lower's
	MTU       int                // bytes; 0 means the lower's
	NoPromisc bool               // passthru only: the lower is not made promiscuous
	Sources   []net.HardwareAddr // source only: the senders that are heard
	Flag      string             // ipvtap only: "bridge", "private" or "vepa"; empty means bridge
	Addrs     []netip.Prefix     // ipvtap only: the guest's, by which the kernel delivers
}

// txQLen sizes the ring of frames that wait for the VMM; without it the ring has no room.
const txQLen = 1000

// tries is how many indices a device may get that are taken.
const tries = 128

// A Device is a macvtap or ipvtap, and the fds of this process that keep it.
type Device struct {
	Link *rtnl.Link // as it was made

	ns     *netns.NS
	nl     *rtnl.Conn
	kind   Kind
	node   *os.File // the folder of its node, by which queues are opened
	queues []*os.File
}

// Create makes a device on cfg.Lower, which nl's namespace has. The device is down,
// in a netns of its own. It needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for the netns.
func Create(nl *rtnl.Conn, cfg Config) (*Device, error) {
	if err := cmp.Or(cfg.Validate(), cfg.checkLower()); err != nil {
		return nil, err
	}
	ns, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("%w (a %s is kept in a netns of its own, which needs CAP_SYS_ADMIN)", err, cfg.Kind)
	}
	d := &Device{ns: ns, kind: cfg.Kind}
	if err := d.create(nl, cfg); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Device) create(nl *rtnl.Conn, cfg Config) (err error) {
	if d.nl, err = rtnl.Open(d.ns); err != nil {
		return err
	}
	if err := nl.AssignNetnsID(d.ns); err != nil { // see Everywhere
		return err
	}
	attrs, err := cfg.attrs()
	if err != nil {
		return err
	}
	attrs = append(attrs, rtnl.Netns(d.ns))
	err = newLink(nl, cfg, func(index int) error {
		return nl.Create(string(cfg.Kind), append(slices.Clone(attrs), rtnl.Index(index))...)
	})
	if err != nil {
		return err
	}
	d.Link, err = d.nl.Link(cfg.Name)
	return err
}

// newLink has a device made with an index that nobody else is likely to have.
func newLink(nl *rtnl.Conn, cfg Config, create func(index int) error) error {
	for try := 1; ; try++ {
		err := create(rtnl.RandomIndex())
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) || try == tries {
			return fmt.Errorf("create %s on %s: %w", cfg.Kind, cfg.Lower.Name, Explain(nl, err, cfg.Kind, cfg.Lower))
		}
	}
}

// attrs are the settings that RTM_NEWLINK takes.
func (cfg Config) attrs() ([]rtnl.Attr, error) {
	attrs := []rtnl.Attr{rtnl.Name(cfg.Name), rtnl.Lower(cfg.Lower.Index), rtnl.TxQLen(txQLen)}
	if cfg.MTU != 0 {
		attrs = append(attrs, rtnl.MTU(cfg.MTU))
	}
	if cfg.Kind == IPVtap {
		return append(attrs, rtnl.IPVlanMode(ipvlanModes[cfg.Mode]), rtnl.IPVlanFlags(ipvlanFlags[cfg.Flag])), nil
	}
	if cfg.MAC != nil {
		attrs = append(attrs, rtnl.MAC(cfg.MAC))
	}
	attrs = append(attrs, rtnl.MacvlanMode(macvlanModes[cfg.Mode]))
	if cfg.NoPromisc {
		attrs = append(attrs, rtnl.MacvlanNoPromisc())
	}
	if len(cfg.Sources) > 0 {
		attrs = append(attrs, rtnl.MacvlanSources(cfg.Sources)...)
	}
	return attrs, nil
}

// NL is a netlink socket in the device's netns. It stays the Device's.
func (d *Device) NL() *rtnl.Conn { return d.nl }

// AddAltName gives the device one more name.
func (d *Device) AddAltName(name string) error { return d.nl.AddAltName(d.Link.Index, name) }

// Set changes settings of the device, in its own netns.
func (d *Device) Set(attrs ...rtnl.Attr) error { return d.nl.Set(d.Link.Index, attrs...) }

// AddAddr gives an ipvtap an address of its guest: only by it does the kernel deliver.
func (d *Device) AddAddr(p netip.Prefix) error { return d.nl.AddAddr(d.Link.Index, p) }

// Up brings the device up. An address that another device on the same lower has is refused then.
func (d *Device) Up() error { return Up(d.nl, d.Link) }

// Delete removes the device at once, which the kernel does only some time after the
// last fd is closed. No process may hold a queue of it any more.
func (d *Device) Delete() error {
	err := d.nl.Delete(d.Link.Index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Read reads the device's link again.
func (d *Device) Read() (*rtnl.Link, error) { return d.nl.LinkByIndex(d.Link.Index) }

// Queues are the open queues. They stay the Device's.
func (d *Device) Queues() []*os.File { return d.queues }

// Netns is the namespace that the device is in. It stays the Device's; a copy of its
// fd keeps the device, and lets its holder look in.
func (d *Device) Netns() *netns.NS { return d.ns }

// Close closes everything that this process has of the device. The device goes with it
// unless somebody was given a copy. Called again, it does nothing.
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
