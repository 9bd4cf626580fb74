// Package vtap describes macvtaps and ipvtaps as data: their kinds, modes and settings. It touches
// no kernel.
package vtap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Kind is "macvtap" or "ipvtap".
type Kind string

// The two kinds.
const (
	Macvtap Kind = "macvtap"
	IPVtap  Kind = "ipvtap"
)

// MaxGroups limits the multicast addresses that a device is set to receive. A virtio-net guest asks
// for at most 64 (MAC_TABLE_ENTRIES in QEMU's hw/net/virtio-net.c), and for all multicast if it
// needs more.
const MaxGroups = 256

// Config says how a new device should be.
type Config struct {
	Kind Kind
	Name string // in its own netns, at most 15 bytes

	Mode      string             // of Modes(Kind)
	MAC       net.HardwareAddr   // macvtap only: an ipvtap has its parent device's
	MTU       int                // bytes; 0 means the parent device's
	NoPromisc bool               // passthru only: do not make the parent device promiscuous
	Sources   []net.HardwareAddr // source only: the senders whose frames are received
	Flag      string             // ipvtap only: "bridge", "private" or "vepa"; empty means bridge
	Addrs     []netip.Prefix     // ipvtap only: the guest's addresses, by which the kernel delivers
}

// Modes lists the modes of a kind, the usual one first.
func Modes(kind Kind) []string {
	if kind == IPVtap {
		return []string{"l2", "l3"}
	}
	return []string{"bridge", "vepa", "private", "passthru", "source"}
}

// flags are those of an ipvtap; the empty one means bridge.
var flags = []string{"", "bridge", "private", "vepa"}

// Validate checks what can be checked without the kernel.
func (cfg Config) Validate() error {
	switch {
	case cfg.Kind != Macvtap && cfg.Kind != IPVtap:
		return fmt.Errorf("kind %q: want macvtap or ipvtap", cfg.Kind)
	case cfg.Kind == IPVtap && cfg.Mode == "l3s":
		// ipvlan_nf_input in drivers/net/ipvlan/ipvlan_l3s.c assigns packets to the ipvtap
		// only after its rx_handler would have run.
		return errors.New(
			"ipvtap mode l3s: incoming packets go to the host's IP stack, so that the guest could only send (use mode l3 or l2)")
	case !slices.Contains(Modes(cfg.Kind), cfg.Mode):
		return fmt.Errorf("%s mode %q: want %s", cfg.Kind, cfg.Mode, strings.Join(Modes(cfg.Kind), ", "))
	case cfg.NoPromisc && cfg.Mode != "passthru":
		return errors.New("nopromisc needs mode passthru: other modes never make the parent device promiscuous")
	case len(cfg.Sources) > 0 && cfg.Mode != "source":
		return errors.New("source addresses need mode source")
	case cfg.Mode == "source" && len(cfg.Sources) == 0:
		return errors.New("mode source needs source addresses: it receives only from the senders that are named")
	case !slices.Contains(flags, cfg.Flag), cfg.Flag != "" && cfg.Kind != IPVtap:
		return fmt.Errorf("flag %q: want bridge, private or vepa, for an ipvtap only", cfg.Flag)
	case cfg.Kind == IPVtap && cfg.MAC != nil:
		return errors.New("an ipvtap cannot have a MAC: it uses its parent device's")
	case cfg.Kind == IPVtap && len(cfg.Addrs) == 0:
		return errors.New("an ipvtap needs an IP address: the kernel delivers to it by address")
	case cfg.Kind == Macvtap && len(cfg.Addrs) > 0:
		return errors.New("a macvtap takes no IP address: the kernel delivers by address only to an ipvtap")
	}
	return nil
}
