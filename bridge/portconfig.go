package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/kernel/rtnl"
)

// maxVLAN is the highest VLAN id; 0 and 4095 are reserved (IEEE 802.1Q, table 9-2).
const maxVLAN = 4094

// PortConfig says how a bridge port should be. Its zero value is how the kernel sets up a
// new port. VLAN and Trunk need a bridge that filters VLANs.
type PortConfig struct {
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
	NoFlood    bool `json:"no_flood,omitempty"`    // no unicast to unknown addresses; broadcast and multicast still pass

	// Forward is the set of link-local protocols whose frames are forwarded when they arrive on
	// the port. (A bridge that takes no part in a spanning tree always forwards BPDUs.)
	Forward Protocols `json:"forward,omitempty"`

	// Other describes settings that something other than vmnet has made: "untagged:20" (that
	// VLAN leaves untagged too), "tagged-native:10" (the native VLAN leaves tagged), "locked",
	// "no-broadcast", "no-multicast" (rtnl.PortFlags). Only ReadPort sets it, and Validate
	// refuses it.
	Other string `json:"other,omitempty"`
}

// VLANRange is the range of VLANs from First to Last, both included.
type VLANRange struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// Validate checks what can be checked without the kernel. Its error matches ErrInvalid
// with errors.Is.
func (cfg PortConfig) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg PortConfig) validate() error {
	switch {
	case cfg.Other != "":
		return fmt.Errorf("%q cannot be requested", cfg.Other)
	case cfg.VLAN != 0 && len(cfg.Trunk) > 0:
		return errors.New("both VLAN and trunk: a port is an access port of one VLAN or a trunk of several (use the native VLAN for a trunk's untagged frames)")
	case cfg.Native != 0 && len(cfg.Trunk) == 0:
		return errors.New("native VLAN without trunk: it is the VLAN of a trunk's untagged frames (give an access port a VLAN only)")
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

func (r VLANRange) validate() error {
	switch {
	case !validVLAN(r.First):
		return vlanError(r.First)
	case !validVLAN(r.Last):
		return vlanError(r.Last)
	case r.First > r.Last:
		return fmt.Errorf("VLANs %d-%d: want the lower number first", r.First, r.Last)
	}
	return nil
}

func validVLAN(id int) bool { return id >= 1 && id <= maxVLAN }

func vlanError(id int) error { return fmt.Errorf("VLAN %d: want 1 to %d", id, maxVLAN) }

// IsZero reports whether cfg sets nothing.
func (cfg PortConfig) IsZero() bool { return cfg.Equal(PortConfig{}) }

// Equal reports whether both mean the same settings, however their trunks are written.
func (cfg PortConfig) Equal(other PortConfig) bool {
	a, b := cfg.normal(), other.normal()
	trunks := slices.Equal(a.Trunk, b.Trunk)
	a.Trunk, b.Trunk = nil, nil
	return trunks && a.flags() == b.flags() && a.VLAN == b.VLAN && a.Native == b.Native && a.Other == b.Other
}

// On returns what ReadPort returns for a port of br that was set to cfg. On a bridge that
// filters VLANs, a port without VLANs of its own is an access port of the default VLAN.
// vmnet check compares with it.
func (cfg PortConfig) On(br *rtnl.Link) PortConfig {
	cfg = cfg.normal()
	if filters(br) && !cfg.HasVLANs() {
		cfg.VLAN = br.Bridge.DefaultPVID
	}
	return cfg
}

// NoVLAN reports whether a port of br with the settings cfg passes no frames because br filters
// VLANs and the port is in none: br has no default VLAN (vlan_default_pvid 0), or the port was
// removed from it.
func NoVLAN(br *rtnl.Link, cfg PortConfig) bool {
	return filters(br) && !cfg.On(br).HasVLANs()
}

// HasVLANs reports whether cfg names VLANs.
func (cfg PortConfig) HasVLANs() bool { return cfg.VLAN != 0 || len(cfg.Trunk) > 0 }

func (cfg PortConfig) flags() rtnl.PortFlags {
	return rtnl.PortFlags{Hairpin: cfg.Hairpin, Isolated: cfg.Isolated, Learning: !cfg.NoLearning, Flood: !cfg.NoFlood, Forward: uint16(cfg.Forward)}
}

// normal returns the normal form of cfg: a sorted trunk without overlaps and without the
// native VLAN. A trunk that has only its native VLAN becomes an access port.
func (cfg PortConfig) normal() PortConfig {
	cfg.Trunk = merge(cfg.Trunk)
	if cfg.Native == 0 || len(cfg.Trunk) == 0 {
		return cfg
	}
	cfg.Trunk = without(cfg.Trunk, []VLANRange{{cfg.Native, cfg.Native}})
	if len(cfg.Trunk) == 0 && cfg.VLAN == 0 {
		cfg.VLAN, cfg.Native = cfg.Native, 0
	}
	return cfg
}

// merge sorts ranges and joins those that overlap or touch.
func merge(ranges []VLANRange) []VLANRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b VLANRange) int { return cmp.Compare(a.First, b.First) })
	var merged []VLANRange
	for _, r := range sorted {
		if n := len(merged); n > 0 && r.First <= merged[n-1].Last+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// without returns ranges minus gone. Both must be sorted and merged.
func without(ranges, gone []VLANRange) []VLANRange {
	var left []VLANRange
	for _, r := range ranges {
		for _, g := range gone {
			if g.Last < r.First || g.First > r.Last {
				continue
			}
			if g.First > r.First {
				left = append(left, VLANRange{r.First, g.First - 1})
			}
			r.First = g.Last + 1
		}
		if r.First <= r.Last {
			left = append(left, r)
		}
	}
	return left
}
