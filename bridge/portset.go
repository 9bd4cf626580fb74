package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/rtnl"
)

// ErrNotSupported is returned for a feature that the running kernel was built without.
var ErrNotSupported = errors.New("not supported by this kernel")

// SetPort gives a port of br exactly the settings of cfg. If the port already has them, SetPort
// only sends two read requests. It does not change the VLANs of the bridge itself (the host).
// It does not change a port's VLANs on a bridge that does not filter, where they have no effect.
//
// While SetPort changes a port that is up, no frame passes that both the old and the new
// settings drop: first the port leaves all VLANs that it should not be in, then one message
// sets the flags and after them the VLANs. A port that was just added still has the kernel's
// default settings; AddPortWith keeps it down until it has its own.
func SetPort(c *rtnl.Conn, br, port *rtnl.Link, cfg PortConfig) error {
	err := cfg.fits(br)
	if err == nil {
		err = setPort(c, br, port, cfg.On(br))
	}
	if err != nil {
		return fmt.Errorf("set port %s of %s: %w", port.Name, br.Name, explainSet(err))
	}
	return nil
}

// AddSettings adds the settings of cfg to a port of br that another program has set up, and keeps
// its other settings. It only turns flags on, and sets VLANs only if cfg names some. It sends only
// the flags that change, so that it does not overwrite what the other program sets at the same
// time. changed reports whether anything was sent.
func AddSettings(c *rtnl.Conn, br, port *rtnl.Link, cfg PortConfig) (changed bool, err error) {
	if err = cfg.fits(br); err == nil {
		changed, err = addSettings(c, br, port, cfg.normal())
	}
	if err != nil {
		return changed, fmt.Errorf("set port %s of %s: %w", port.Name, br.Name, explainSet(err))
	}
	return changed, nil
}

// fits validates cfg, and refuses VLANs on a bridge that does not filter them.
func (cfg PortConfig) fits(br *rtnl.Link) error {
	switch err := cfg.Validate(); {
	case err != nil:
		return err
	case cfg.Forward.Has(spanningTree) && br.Bridge != nil && br.Bridge.STP:
		return fmt.Errorf("bridge %s takes part in a spanning tree and must not forward stp (list the other protocols, or ip link set %s type bridge stp_state 0)", br.Name, br.Name)
	case !cfg.HasVLANs() || filters(br):
		return nil
	case br.Bridge != nil && !br.Bridge.CanFilterVLANs:
		return cannotFilter(br.Name)
	}
	return fmt.Errorf("bridge %s does not filter VLANs (vmnet bridge create --vlan-filtering, or ip link set %s type bridge vlan_filtering 1)", br.Name, br.Name)
}

// filterVLANs turns VLAN filtering on for a new bridge and reads the setting back: a kernel
// that was built without it refuses the request or ignores it, depending on its version. It
// is a separate request because a kernel without a bridge driver refuses in the same way.
func filterVLANs(c *rtnl.Conn, br *rtnl.Link) error {
	err := c.Change("bridge", br.Index, rtnl.BridgeVLANFiltering())
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("filter VLANs: %w", err)
	}
	now, err := c.LinkByIndex(br.Index)
	if err == nil && !filters(now) {
		err = cannotFilter(br.Name)
	}
	return err
}

func cannotFilter(bridge string) error {
	return fmt.Errorf("bridge %s cannot filter VLANs: %w, which lacks CONFIG_BRIDGE_VLAN_FILTERING (use one bridge for each VLAN, or another kernel)", bridge, ErrNotSupported)
}

// explainSet adds the cause and cure to errors of requests about a port's settings.
func explainSet(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}

func filters(br *rtnl.Link) bool { return br.Bridge != nil && br.Bridge.VLANFiltering }

func setPort(c *rtnl.Conn, br, port *rtnl.Link, want PortConfig) error {
	port, err := c.LinkByIndex(port.Index) // the caller may have read it before it became a port
	if err != nil {
		return err
	}
	have, err := readPort(c, br, port)
	if err != nil || have.Equal(want) {
		return err
	}
	change := have.changeTo(want)
	if !filters(br) {
		return c.SetPort(port.Index, change)
	}
	return setVLANs(c, port, change, have, want)
}

// changeTo returns the change of the flags from cfg to want.
func (cfg PortConfig) changeTo(want PortConfig) rtnl.PortChange {
	return rtnl.PortChange{
		PortFlags: want.flags(),
		Flush:     want.NoLearning && !cfg.NoLearning, // else the addresses learned before would stay until they age
	}
}

// setVLANs sends change together with the change of the VLANs from have to want.
func setVLANs(c *rtnl.Conn, port *rtnl.Link, change rtnl.PortChange, have, want PortConfig) error {
	change.VLANs = want.vlans()
	if left := leave(have.vlans(), change.VLANs); len(left) > 0 {
		if err := c.DeletePortVLANs(port.Index, left); err != nil {
			return fmt.Errorf("leave VLANs: %w", err)
		}
	}
	return c.SetPort(port.Index, change)
}

func addSettings(c *rtnl.Conn, br, port *rtnl.Link, cfg PortConfig) (changed bool, err error) {
	if port, err = c.LinkByIndex(port.Index); err != nil {
		return false, err
	}
	have, err := readPort(c, br, port)
	if err != nil {
		return false, err
	}
	want := have.plus(cfg)
	if have.Equal(want) {
		return false, nil
	}
	from := have.flags()
	change := have.changeTo(want)
	change.From = &from
	if !cfg.HasVLANs() {
		return true, c.SetPort(port.Index, change)
	}
	return true, setVLANs(c, port, change, have, want)
}

// plus returns cfg with the settings of more added: the flags of both, and the VLANs of more if it
// names any.
func (cfg PortConfig) plus(more PortConfig) PortConfig {
	cfg.Isolated = cfg.Isolated || more.Isolated
	cfg.Hairpin = cfg.Hairpin || more.Hairpin
	cfg.NoLearning = cfg.NoLearning || more.NoLearning
	cfg.NoFlood = cfg.NoFlood || more.NoFlood
	cfg.Forward |= more.Forward
	if more.HasVLANs() {
		cfg.VLAN, cfg.Trunk, cfg.Native, cfg.Other = more.VLAN, more.Trunk, more.Native, otherFlags(cfg.Other)
	}
	return cfg
}

// flagWords lists the words in Other that stand for flags rather than VLANs.
var flagWords = []string{"locked", "no-broadcast", "no-multicast"}

// otherFlags returns Other without its words about VLANs.
func otherFlags(other string) string {
	words := strings.Split(other, ";")
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return !slices.Contains(flagWords, w) }), ";")
}

// vlans returns the kernel's form of the VLANs of cfg, which must be in normal form.
func (cfg PortConfig) vlans() []rtnl.VLANs {
	var vlans []rtnl.VLANs
	for _, r := range cfg.Trunk {
		vlans = append(vlans, rtnl.VLANs{First: r.First, Last: r.Last})
	}
	if untagged := max(cfg.VLAN, cfg.Native); untagged != 0 {
		vlans = append(vlans, rtnl.VLANs{First: untagged, Last: untagged, PVID: true, Untagged: true})
	}
	return vlans
}

// leave returns the VLANs of have that are not in want.
func leave(have, want []rtnl.VLANs) []rtnl.VLANs {
	var gone []rtnl.VLANs
	for _, r := range without(ranges(have), ranges(want)) {
		gone = append(gone, rtnl.VLANs{First: r.First, Last: r.Last})
	}
	return gone
}

func ranges(vlans []rtnl.VLANs) []VLANRange {
	var all []VLANRange
	for _, v := range vlans {
		all = append(all, VLANRange{v.First, v.Last})
	}
	return merge(all)
}

// ReadPort returns the current settings of a port of br. The caller must have read port
// after it became one. After SetPort with cfg, ReadPort returns cfg.On(br): on a bridge that
// filters VLANs, a port that was given none is an access port of the default VLAN. On a
// bridge that does not filter, the result has no VLANs.
func ReadPort(c *rtnl.Conn, br, port *rtnl.Link) (PortConfig, error) {
	cfg, err := readPort(c, br, port)
	if err != nil {
		return cfg, fmt.Errorf("read port %s of %s: %w", port.Name, br.Name, err)
	}
	return cfg, nil
}

func readPort(c *rtnl.Conn, br, port *rtnl.Link) (PortConfig, error) {
	if port.Port == nil || port.Master != br.Index {
		return PortConfig{}, errors.New("it is not a port of that bridge")
	}
	if !filters(br) {
		return portConfig(port, nil), nil
	}
	vlans, err := c.PortVLANs(port.Index)
	return portConfig(port, vlans[port.Index]), err
}

// portConfig builds the settings of a port from what the kernel reports.
func portConfig(port *rtnl.Link, vlans []rtnl.VLANs) PortConfig {
	f := port.Port.PortFlags
	cfg := PortConfig{Isolated: f.Isolated, Hairpin: f.Hairpin, NoLearning: !f.Learning, NoFlood: !f.Flood, Forward: Protocols(f.Forward)}
	var untagged []VLANRange
	var other []string
	for _, v := range vlans {
		r := VLANRange{v.First, v.Last}
		cfg.Trunk = append(cfg.Trunk, r)
		switch {
		case v.PVID:
			cfg.Native = v.First
			if !v.Untagged {
				other = append(other, "tagged-native:"+FormatVLANs([]VLANRange{r}))
			}
		case v.Untagged:
			untagged = append(untagged, r)
		}
	}
	if len(untagged) > 0 {
		other = append(other, "untagged:"+FormatVLANs(untagged))
	}
	for i, on := range []bool{f.Locked, f.NoBroadcast, f.NoMulticast} {
		if on {
			other = append(other, flagWords[i])
		}
	}
	slices.Sort(other)
	cfg.Other = strings.Join(other, ";")
	return cfg.normal()
}
