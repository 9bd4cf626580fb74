// Package brport describes the ports of bridges and switches as data: their settings, VLANs and
// link-local protocols, and how these are written. It touches no kernel. The kernel abbreviates
// "bridge port" in the same way (IFLA_BRPORT_*).
package brport

import (
	"errors"
	"fmt"
	"slices"
)

// ErrInvalid is returned for a bridge, a switch or a port whose description is inconsistent or out
// of range.
var ErrInvalid = errors.New("invalid")

// ErrNotSupported is returned for a feature that the running kernel was built without.
var ErrNotSupported = errors.New("not supported by this kernel")

// Settings says how a bridge port should be. Its zero value is how the kernel sets up a
// new port. VLAN and Trunk need a bridge that filters VLANs.
//
// A new setting of a bridge's port needs the following, even if a switch cannot have it:
//
//	a field here, in Equal, and a word in String and setWord (text.go)
//	rtnl.PortFlags, parsePort, byKind      internal/kernel/rtnl/bridge.go, brport.go
//	flags, SettingsOf, plus                internal/kernel/bridges/settings.go
//	a flag in AddPort, a word in port      internal/cli/nicflags/port.go, words.go
//	the group of the flag in the help      cmd/vmnet/help.go, netns.go
//	who may choose it                      internal/access/policy/rule.go, parse.go
//	an attribute of a declared NIC         internal/libvirthook/declared/attributes.go, write.go
//	what a switch does with it             bridge/vswitch/vport/config.go; if it has no such
//	                                       setting, Switch.validate in tapmgr/nic/switch.go
//	a refusal, if Open vSwitch has none    CheckSettings in internal/ovs/port.go
//	docs/man                               qemu-netup, policy.yaml, vmnet-hook, vmnet-switch,
//	                                       vmnet-netns, vmnet-cni
//
// list, show, check and set need nothing: they go by String and Equal. SetPort writes all of
// PortFlags, so code that sets such a flag by itself has to go through Settings too.
//
// Aliases carry the words of String ("noflood"), flags, policies and XML write "no-flood", JSON
// "no_flood". An older vmnet takes a link whose alias has an unknown word for a foreign one.
type Settings struct {
	// VLAN makes an access port: incoming untagged frames belong to that VLAN, and its
	// frames leave untagged. (The port also accepts frames that are tagged with that VLAN.)
	// Without VLAN and Trunk, the port is in the bridge's default VLAN.
	VLAN int `json:"vlan,omitempty"`

	// Trunk lists the VLANs whose frames enter and leave tagged; all others are dropped.
	Trunk []VLANRange `json:"trunk,omitempty"`

	// Native is the VLAN of a trunk's untagged frames, which need not be in Trunk.
	// 0 drops untagged frames.
	Native int `json:"native,omitempty"`

	Isolated   bool `json:"isolated,omitempty"`    // no frames to and from other isolated ports
	Hairpin    bool `json:"hairpin,omitempty"`     // frames may leave by the port on which they arrived
	NoLearning bool `json:"no_learning,omitempty"` // addresses behind the port are not learned

	// NoFlood keeps unicast frames to unknown addresses from leaving by the port. Broadcast and
	// multicast frames still do.
	NoFlood bool `json:"no_flood,omitempty"`

	// Forward is the set of link-local protocols whose frames are forwarded when they arrive on
	// the port. (A bridge that takes no part in a spanning tree always forwards BPDUs.)
	Forward Protocols `json:"forward,omitempty"`

	// Other describes settings that something other than vmnet has made: "untagged:20" (that
	// VLAN leaves untagged too), "tagged-native:10" (the native VLAN leaves tagged), "locked",
	// "no-broadcast", "no-multicast". Only a port that was read has it, and Validate refuses
	// it.
	Other string `json:"other,omitempty"`
}

// Validate checks what can be checked without the kernel. Its error matches ErrInvalid
// with errors.Is.
func (cfg Settings) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg Settings) validate() error {
	switch {
	case cfg.Other != "":
		return fmt.Errorf("%q cannot be requested", cfg.Other)
	case cfg.VLAN != 0 && len(cfg.Trunk) > 0:
		return errors.New(
			"both VLAN and trunk: a port is an access port of one VLAN or a trunk of several (use the native VLAN for a trunk's untagged frames)")
	case cfg.Native != 0 && len(cfg.Trunk) == 0:
		return errors.New(
			"native VLAN without trunk: it is the VLAN of a trunk's untagged frames (give an access port a VLAN only)")
	case cfg.VLAN != 0 && !validVLAN(cfg.VLAN):
		return vlanError(cfg.VLAN)
	case cfg.Native != 0 && !validVLAN(cfg.Native):
		return vlanError(cfg.Native)
	case cfg.Forward&^AllProtocols != 0:
		_, err := parseProtocol("pause")
		return err
	}
	for _, r := range cfg.Trunk {
		if err := r.validate(); err != nil {
			return err
		}
	}
	return nil
}

// IsZero reports whether cfg sets nothing.
func (cfg Settings) IsZero() bool { return cfg.Equal(Settings{}) }

// Equal reports whether both mean the same settings, however their trunks are written.
func (cfg Settings) Equal(other Settings) bool {
	a, b := cfg.Normal(), other.Normal()
	return a.VLAN == b.VLAN && slices.Equal(a.Trunk, b.Trunk) && a.Native == b.Native &&
		a.Isolated == b.Isolated && a.Hairpin == b.Hairpin && a.NoLearning == b.NoLearning && a.NoFlood == b.NoFlood &&
		a.Forward == b.Forward && a.Other == b.Other
}

// HasVLANs reports whether cfg names VLANs.
func (cfg Settings) HasVLANs() bool { return cfg.VLAN != 0 || len(cfg.Trunk) > 0 }

// Normal returns the normal form of cfg: a sorted trunk without overlaps and without the
// native VLAN. A trunk that has only its native VLAN becomes an access port.
func (cfg Settings) Normal() Settings {
	cfg.Trunk = MergeVLANs(cfg.Trunk)
	if cfg.Native == 0 || len(cfg.Trunk) == 0 {
		return cfg
	}
	cfg.Trunk = WithoutVLANs(cfg.Trunk, []VLANRange{{cfg.Native, cfg.Native}})
	if len(cfg.Trunk) == 0 && cfg.VLAN == 0 {
		cfg.VLAN, cfg.Native = cfg.Native, 0
	}
	return cfg
}

// Learned is a MAC address that the FDB has behind a port.
type Learned struct {
	MAC    string `json:"mac"`
	VLAN   int    `json:"vlan,omitempty"`
	Static bool   `json:"static,omitempty"`
}

// ValidName reports whether the kernel accepts name unchanged as an interface's name
// (dev_valid_name). It would cut a longer name at 15 bytes, and replace %d with a number.
// It counts 0xa0 as a space.
func ValidName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0xa0 || c == '/' || c == ':' || c == '%' {
			return false
		}
	}
	return name != "" && len(name) <= 15 && name != "." && name != ".."
}
