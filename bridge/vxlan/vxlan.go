// Package vxlan is the VXLAN device of a bridge as data (RFC 7348): which segments its guests share
// with those of other hosts, and how the frames get there.
package vxlan

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DefaultPort is the UDP port that RFC 7348 assigns.
const DefaultPort = 4789

// MaxRemotes bounds the list of remote hosts: each broadcast is sent to all of them.
const MaxRemotes = 128

// MaxVNI is the largest VNI (RFC 7348, section 5).
const MaxVNI = 1<<24 - 1

// maxFloods bounds the entries by which broadcasts are sent: one for each VNI and remote host.
const maxFloods = 1 << 15

// Config is what a VXLAN device should be.
type Config struct {
	VNI   int        // the segment: 1 to 16777215; 0 with a Map
	Map   Map        // the segments of the bridge's VLANs, if there is one for each; nil otherwise
	Local netip.Addr // of this host, by which the others reach it

	// Remotes are the other hosts, to each of which broadcasts and frames to unknown addresses are
	// sent. Without any, the device learns nothing and has no remote hosts but those that another
	// program adds, such as FRR for EVPN.
	Remotes []netip.Addr

	Port int // UDP; 0 means DefaultPort
}

// Static reports whether the remote hosts are listed rather than added by another program.
func (c Config) Static() bool { return len(c.Remotes) > 0 }

// UDPPort returns the UDP port.
func (c Config) UDPPort() int {
	if c.Port == 0 {
		return DefaultPort
	}
	return c.Port
}

// maxName is the size of an interface's name in bytes (IFNAMSIZ, without its NUL).
const maxName = 15

// Interface returns the name of the device of that bridge: vxVNI, or with a map, which may change,
// vx-BRIDGE, as much of it as fits.
func (c Config) Interface(bridge string) string {
	if c.Map == nil {
		return "vx" + strconv.Itoa(c.VNI)
	}
	name := "vx-" + bridge
	return name[:min(len(name), maxName)]
}

// String names the segments, for messages: VNI 100, or map 10:10010.
func (c Config) String() string {
	if c.Map == nil {
		return fmt.Sprintf("VNI %d", c.VNI)
	}
	return "map " + short(c.Map.String())
}

// short cuts a text that would fill a message.
func short(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	return s[:strings.LastIndexByte(s[:most], ',')+1] + "..."
}

// Segments returns the VNIs in ascending order.
func (c Config) Segments() []int {
	if c.Map == nil {
		return []int{c.VNI}
	}
	return c.Map.VNIs()
}

// The bytes that a frame of the segment grows by: its own Ethernet header, the VXLAN and UDP
// headers, and an IPv4 or IPv6 header (RFC 7348, section 5).
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// Overhead returns by how many bytes the MTU of the segment must be below that of the network
// between the hosts.
func (c Config) Overhead() int { return OverheadFor(c.Local) }

// OverheadFor is Config.Overhead for hosts of which one has that address.
func OverheadFor(host netip.Addr) int {
	if host.Is6() {
		return overhead6
	}
	return overhead4
}

// Validate returns what contradicts itself or RFC 7348, or nil.
func (c Config) Validate() error {
	if err := c.validateSegments(); err != nil {
		return err
	}
	switch {
	case !c.Local.IsValid():
		return fmt.Errorf("%s: it needs an address of this host (--local)", c)
	case c.Port < 0 || c.Port > 65535:
		return fmt.Errorf("VXLAN port %d: want 1 to 65535", c.Port)
	case len(c.Remotes) > MaxRemotes:
		return fmt.Errorf("%s: %d remote hosts, at most %d (leave them out, and let FRR add them: docs/evpn.md)",
			c, len(c.Remotes), MaxRemotes)
	case len(c.Remotes)*len(c.Segments()) > maxFloods:
		return fmt.Errorf("%d VNIs for %d remote hosts: at most %d entries (leave the hosts out, and let FRR add "+
			"them: docs/evpn.md)", len(c.Segments()), len(c.Remotes), maxFloods)
	}
	if err := CheckHost("local address", c.Local); err != nil {
		return err
	}
	for i, a := range c.Remotes {
		switch err := CheckHost("remote address", a); {
		case err != nil:
			return err
		case a.Is4() != c.Local.Is4():
			return fmt.Errorf("remote address %s: the local one, %s, is of the other IP version", a, c.Local)
		case a == c.Local:
			return fmt.Errorf("remote address %s: it is the local one (name the other hosts only)", a)
		case slices.Contains(c.Remotes[:i], a):
			return fmt.Errorf("remote address %s: it is given twice", a)
		}
	}
	return nil
}

func (c Config) validateSegments() error {
	switch {
	case c.Map != nil && c.VNI != 0:
		return fmt.Errorf("VNI %d and a map of VLANs: want one of them", c.VNI)
	case c.Map != nil:
		return c.Map.Validate()
	case c.VNI < 1 || c.VNI > MaxVNI:
		return fmt.Errorf("VNI %d: want 1 to %d", c.VNI, MaxVNI)
	}
	return nil
}

// CheckHost returns an error unless an address can be that of a host. what names it.
func CheckHost(what string, a netip.Addr) error {
	if !a.IsGlobalUnicast() || a.Zone() != "" || a.Is4In6() {
		return fmt.Errorf("%s %s: want the unicast address of a host, such as 192.0.2.1", what, a)
	}
	return nil
}
