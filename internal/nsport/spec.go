// Package nsport connects network namespaces, such as those of containers, to the networks of
// guests: by a veth pair whose one end is a port of a bridge, or by a macvlan or ipvlan on the
// parent device of guests. The end in the namespace goes with the namespace. The alias of the end
// here, or of the macvlan or ipvlan itself, is the only record.
package nsport

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// The kinds of links.
const (
	Veth    = "veth"
	Macvlan = "macvlan"
	IPVlan  = "ipvlan"
)

// modes are those of macvlans and ipvlans, the default first. Passthru would change the parent
// device's address, and source would need senders.
var modes = map[string][]string{Macvlan: {"bridge", "vepa", "private"}, IPVlan: {"l2", "l3", "l3s"}}

// Spec is what a namespace should have.
type Spec struct {
	// Netns is the namespace: a name of ip-netns(8), a path with a slash, or the PID of a process
	// in it.
	Netns string
	// ID names the attachment. It is unique among those of one host; empty for one that is derived
	// from Netns and Interface.
	ID string
	// Interface is the name of the end in the namespace; empty for eth0.
	Interface string

	// One of these says where the other end is: a bridge, the bridge of a network, or a parent
	// device.
	Bridge, Network, Macvlan, IPVlan string

	Mode string // of a macvlan or ipvlan; empty for the default
	// Addresses are those of the end in the namespace. On a network, the prefix length may be that
	// of a single address: it becomes that of the network.
	Addresses []netip.Prefix
	// Gateways are the routers of default routes, at most one of each IP version.
	Gateways []netip.Addr
	MAC      net.HardwareAddr // nil for one that is derived from the ID; an ipvlan has none
	MTU      int              // in bytes; 0 for that of the bridge or parent device
	Port     brport.Settings  // of the bridge's port
}

// Validate checks the Spec alone. Its error matches nic.ErrInvalid.
func (s Spec) Validate() error {
	return step.WithStage(nic.ErrInvalid,
		cmp.Or(s.validateNames(), s.validatePlace(), s.validateIP(), s.validateRest()))
}

func (s Spec) validateNames() error {
	switch {
	case s.Netns == "":
		return errors.New("no network namespace is named")
	case s.Interface != "" && !brport.ValidName(s.Interface):
		return fmt.Errorf(
			"interface name %q: want 1 to 15 bytes without spaces, slashes, colons and %%",
			s.Interface,
		)
	case s.ID != "" && !validID(s.ID):
		return fmt.Errorf(
			"id %q: want 1 to %d letters, digits, dots, hyphens and underscores, a letter or digit first",
			s.ID,
			maxID,
		)
	}
	return nil
}

func (s Spec) validatePlace() error {
	places := slices.DeleteFunc([]string{s.Bridge, s.Network, s.Macvlan, s.IPVlan},
		func(p string) bool { return p == "" })
	switch kind := s.kind(); {
	case len(places) != 1:
		return errors.New("want one bridge, network or parent device")
	case kind == Veth && s.Mode != "":
		return errors.New("a mode needs a macvlan or ipvlan")
	case kind != Veth && s.Mode != "" && !slices.Contains(modes[kind], s.Mode):
		return fmt.Errorf("%s mode %q: want %s", kind, s.Mode, strings.Join(modes[kind], ", "))
	case kind != Veth && !s.Port.IsZero():
		return errors.New(
			"settings of a port, such as a VLAN, need a bridge (or name a VLAN device as the parent device)",
		)
	}
	return s.Port.Validate()
}

func (s Spec) validateIP() error {
	for i, a := range s.Addresses {
		if ip := a.Addr(); !a.IsValid() || ip.Is4In6() || ip.IsMulticast() || ip.IsUnspecified() {
			return fmt.Errorf("address %s: want that of a host, such as 10.0.0.7/24 or fd00::7/64", a)
		}
		if slices.ContainsFunc(s.Addresses[:i], func(b netip.Prefix) bool { return a.Addr() == b.Addr() }) {
			return fmt.Errorf("address %s is given twice", a.Addr())
		}
	}
	for i, g := range s.Gateways {
		if !g.IsValid() || g.Is4In6() || g.IsMulticast() || g.IsUnspecified() || g.Zone() != "" {
			return fmt.Errorf("gateway %s: want the address of a router, such as 10.0.0.1", g)
		}
		if slices.ContainsFunc(s.Gateways[:i], func(b netip.Addr) bool { return g.Is4() == b.Is4() }) {
			return fmt.Errorf("gateway %s: one of that IP version is given already", g)
		}
		if !slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Addr().Is4() == g.Is4() }) {
			return fmt.Errorf("gateway %s: it needs an address of that IP version", g)
		}
	}
	return nil
}

func (s Spec) validateRest() error {
	switch {
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", s.MTU, minMTU, maxMTU)
	case s.MAC == nil:
		return nil
	case s.kind() == IPVlan:
		return errors.New("an ipvlan has the MAC address of its parent device")
	case len(s.MAC) != 6 || s.MAC[0]&1 != 0 || s.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf(
			"MAC %s: want six bytes that are no group's address, such as 02:00:00:01:02:03",
			s.MAC,
		)
	}
	return nil
}

// Bounds of an MTU, in bytes (ETH_MIN_MTU, ETH_MAX_MTU).
const minMTU, maxMTU = 68, 65535

// kind returns the kind of the link that the Spec asks for.
func (s Spec) kind() string {
	switch {
	case s.Macvlan != "":
		return Macvlan
	case s.IPVlan != "":
		return IPVlan
	}
	return Veth
}

func (s Spec) ifname() string { return cmp.Or(s.Interface, "eth0") }

// mode returns the mode of a macvlan or ipvlan; empty for a veth.
func (s Spec) mode() string {
	if s.Mode == "" && s.kind() != Veth {
		return modes[s.kind()][0]
	}
	return s.Mode
}

// maxID is in bytes.
const maxID = 32

func validID(id string) bool {
	return id != "" && len(id) <= maxID && strings.IndexFunc(id, func(r rune) bool { return !inID(r) }) < 0 &&
		!strings.ContainsRune(".-_", rune(id[0]))
}

func inID(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
		strings.ContainsRune("._-", r)
}

// id returns the ID, or one that is derived from the namespace's name and the interface.
func (s Spec) id() string {
	if s.ID != "" {
		return s.ID
	}
	clean := strings.Map(func(r rune) rune {
		if inID(r) {
			return r
		}
		return '_'
	}, baseOf(s.Netns)+"-"+s.ifname())
	clean = strings.TrimLeft(clean, ".-_")
	return cmp.Or(clean[max(0, len(clean)-maxID):], "x")
}

// baseOf returns what a namespace is called in a derived ID: its name, the last part of its path,
// or its process.
func baseOf(text string) string {
	if pid, ok := isPID(text); ok {
		return fmt.Sprint("pid", pid)
	}
	clean := filepath.Clean(text)
	if rest, ok := strings.CutPrefix(clean, "/proc/"); ok {
		if pid, ok := isPID(strings.TrimSuffix(rest, "/ns/net")); ok {
			return fmt.Sprint("pid", pid)
		}
	}
	return filepath.Base(clean)
}
