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

// PortConfig says how a bridge port should be. Its zero value is what the kernel
// makes of a new port. VLAN and Trunk take a bridge that filters VLANs.
type PortConfig struct {
	// VLAN makes an access port: untagged frames that come in belong to that VLAN, and
	// its frames leave untagged. (Frames that come in tagged with that same VLAN are
	// taken too.) Without VLAN and Trunk, the port is in the bridge's default VLAN.
	VLAN int `json:"vlan,omitempty"`

	// Trunk are the VLANs whose frames come and go tagged; all others are dropped.
	Trunk []VLANRange `json:"trunk,omitempty"`

	// Native is the VLAN of a trunk's untagged frames, which need not be in Trunk.
	// 0 drops untagged frames.
	Native int `json:"native,omitempty"`

	Isolated   bool `json:"isolated,omitempty"`    // no frames to and from other isolated ports
	Hairpin    bool `json:"hairpin,omitempty"`     // frames may leave by the port that they came in by
	NoLearning bool `json:"no_learning,omitempty"` // addresses behind the port are not learned
	NoFlood    bool `json:"no_flood,omitempty"`    // no unicast to unknown addresses; broadcast and multicast go on

	// Forward are the protocols between neighbours whose frames are forwarded that come in by the
	// port. (Those of spanning trees always are by a bridge that takes no part in one.)
	Forward Protocols `json:"forward,omitempty"`

	// Other is what a port is beyond all that, as somebody else has set it:
	// "untagged:20" (leaves untagged too), "tagged-native:10" (leaves tagged), "locked",
	// "no-broadcast", "no-multicast" (rtnl.PortFlags). Only ReadPort sets it, and Validate refuses it.
	Other string `json:"other,omitempty"`
}

// VLANRange is the VLANs from First to Last.
type VLANRange struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// Validate checks what can be checked without the kernel. Its error Is ErrInvalid.
func (cfg PortConfig) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg PortConfig) validate() error {
	switch {
	case cfg.Other != "":
		return fmt.Errorf("%q cannot be asked for", cfg.Other)
	case cfg.VLAN != 0 && len(cfg.Trunk) > 0:
		return errors.New("both VLAN and trunk: a port is an access port of one VLAN or a trunk of several (a trunk's untagged VLAN is its native one)")
	case cfg.Native != 0 && len(cfg.Trunk) == 0:
		return errors.New("native VLAN without trunk: it is the untagged VLAN of a trunk (an access port has a VLAN only)")
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
		return fmt.Errorf("VLANs %d-%d: want the lower first", r.First, r.Last)
	}
	return nil
}

func validVLAN(id int) bool { return id >= 1 && id <= maxVLAN }

func vlanError(id int) error { return fmt.Errorf("VLAN %d: want 1 to %d", id, maxVLAN) }

// IsZero tells whether nothing is asked for.
func (cfg PortConfig) IsZero() bool { return cfg.Equal(PortConfig{}) }

// Equal tells whether both make the same of a port, however their trunks are written.
func (cfg PortConfig) Equal(other PortConfig) bool {
	a, b := cfg.normal(), other.normal()
	trunks := slices.Equal(a.Trunk, b.Trunk)
	a.Trunk, b.Trunk = nil, nil
	return trunks && a.flags() == b.flags() && a.VLAN == b.VLAN && a.Native == b.Native && a.Other == b.Other
}

// On is what ReadPort tells of a port of br that was set to cfg: without VLANs of
// its own, a port is an access port of the default VLAN of a bridge that filters.
// check compares with it.
func (cfg PortConfig) On(br *rtnl.Link) PortConfig {
	cfg = cfg.normal()
	if filters(br) && !cfg.HasVLANs() {
		cfg.VLAN = br.Bridge.DefaultPVID
	}
	return cfg
}

// NoVLAN reports whether nothing passes a port of br that is as cfg says, since br filters VLANs and the port is in
// none: br has no default VLAN (vlan_default_pvid 0), or somebody has taken the port out of it.
func NoVLAN(br *rtnl.Link, cfg PortConfig) bool {
	return filters(br) && !cfg.On(br).HasVLANs()
}

// HasVLANs reports whether the port was given VLANs of its own.
func (cfg PortConfig) HasVLANs() bool { return cfg.VLAN != 0 || len(cfg.Trunk) > 0 }

func (cfg PortConfig) flags() rtnl.PortFlags {
	return rtnl.PortFlags{Hairpin: cfg.Hairpin, Isolated: cfg.Isolated, Learning: !cfg.NoLearning, Flood: !cfg.NoFlood, Forward: uint16(cfg.Forward)}
}

// normal is the one way to write what cfg means: a sorted trunk without overlaps and
// without the native VLAN. A trunk of nothing but its native VLAN is an access port.
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

// merge sorts ranges and joins those that touch.
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

// without is what is left of ranges; both are as merge makes them.
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
