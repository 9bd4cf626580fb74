// Package macvtap makes macvtaps and ipvtaps: taps that sit directly on an interface of the host,
// their parent device, without a bridge. It is how a program gives a VMM such a device: [Open] a
// network namespace, [Host.Create] a device, [Device.OpenQueue] and [Device.Up], and pass
// [Device.Queues] to the VMM. Package vtap has the settings.
//
// A device lives as long as its fds. It is made in an unnamed network namespace, and its queues are
// opened from inside. Each queue's socket pins that namespace, and so does the namespace's own fd.
// When the last of them is closed, the kernel removes the namespace and the device: a device never
// outlives its VMM.
//
// Contracts: include/uapi/linux/if_link.h, drivers/net/macvlan.c, macvtap.c, tap.c and
// drivers/net/ipvlan/ of the kernel.
package macvtap

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// Host is a network namespace that has parent devices. Several goroutines may call its methods at
// the same time, but none may after Close.
type Host struct {
	ns *netns.NS
	nl *rtnl.Conn
}

// Open opens a network namespace: that of the calling thread if nameOrPath is empty, the one of
// that name in ip-netns(8), or, if nameOrPath contains a slash, the one at that path. Close the
// Host.
func Open(nameOrPath string) (*Host, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &Host{ns, nl}, nil
}

// Close closes the host's fds. The devices that it has made stay.
func (h *Host) Close() error {
	h.nl.Close()
	return h.ns.Close()
}

// Create makes a device on a parent device. The device is down, has no queue yet, and is in a
// namespace of its own. Create needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for the namespace. Close the
// Device.
func (h *Host) Create(parent string, cfg vtap.Config) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if !brport.ValidName(cfg.Name) {
		return nil, fmt.Errorf("device name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", cfg.Name)
	}
	l, err := h.nl.Link(parent)
	if err != nil {
		return nil, fmt.Errorf("parent device %s: %w", parent, err)
	}
	d, err := macvlan.Create(h.nl, l, cfg)
	if err != nil {
		return nil, err
	}
	return &Device{dev: d, parent: parent}, nil
}

// IsWireless reports whether a parent device is a Wi-Fi interface. An access point drops frames
// whose source is not the address of that interface, so only an ipvtap and a macvtap in mode
// passthru work on one.
func (h *Host) IsWireless(parent string) (bool, error) { return macvlan.IsWireless(h.ns, parent) }

// Info is the current state of a device.
type Info struct {
	Name   string
	Alias  string
	Kind   vtap.Kind
	Parent string // name of the parent device
	Mode   string // of vtap.Modes(Kind)
	Flag   string // ipvtap only: "bridge", "private" or "vepa"
	MAC    net.HardwareAddr
	MTU    int // bytes
	Up     bool
}

// List returns the devices that are in other namespaces and have their parent device in this one,
// as those of Create. It also finds those whose queues and namespace no process has open, because
// the fds wait in a socket's queue, are registered with io_uring, or because a mount pins the
// namespace. It skips namespaces that the caller may not read.
func (h *Host) List() ([]Info, error) {
	devices, err := macvlan.Everywhere(h.nl)
	if err != nil {
		return nil, err
	}
	// The kernel gives this namespace an id in itself when it reports the first of these devices.
	self, err := h.nl.NetnsID(h.ns)
	if err != nil || self < 0 { // none of them has its parent device here
		return nil, err
	}
	var infos []Info
	for _, d := range devices {
		if d.LowerNS != self {
			continue
		}
		parent, err := h.nl.LinkByIndex(d.Lower)
		if errors.Is(err, fs.ErrNotExist) { // it has ended, and the device with it
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, infoOf(d.Link, parent.Name))
	}
	return infos, nil
}

func infoOf(l *rtnl.Link, parent string) Info {
	return Info{
		Name: l.Name, Alias: l.Alias, Kind: vtap.Kind(l.Kind), Parent: parent,
		Mode: macvlan.ModeName(l), Flag: macvlan.FlagName(l), MAC: l.MAC, MTU: l.MTU, Up: l.Up,
	}
}
