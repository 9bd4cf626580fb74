package bridges

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
)

// SetPort gives a port of br exactly the settings of cfg. If the port already has them, SetPort
// only sends two read requests. It does not change the VLANs of the bridge itself (the host).
// It does not change a port's VLANs on a bridge that does not filter, where they have no effect.
//
// While SetPort changes a port that is up, no frame passes that both the old and the new
// settings drop: first the port leaves all VLANs that it should not be in, then one message
// sets the flags and after them the VLANs. A port that was just added still has the kernel's
// default settings; AddPort keeps it down until it has its own.
func SetPort(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings) error {
	err := fits(br, cfg)
	if err == nil {
		err = setPort(c, br, port, Effective(br, cfg))
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
func AddSettings(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings) (changed bool, err error) {
	if err = fits(br, cfg); err == nil {
		changed, err = addSettings(c, br, port, cfg.Normal())
	}
	if err != nil {
		return changed, fmt.Errorf("set port %s of %s: %w", port.Name, br.Name, explainSet(err))
	}
	return changed, nil
}

// bpdus is the last byte of the address that a spanning tree uses (IEEE 802.1Q, table 8-1).
const bpdus = 0x00

// fits validates cfg, and refuses VLANs on a bridge that does not filter them.
func fits(br *rtnl.Link, cfg brport.Settings) error {
	switch err := cfg.Validate(); {
	case err != nil:
		return err
	case cfg.Forward.Has(bpdus) && br.Bridge != nil && br.Bridge.STP:
		return fmt.Errorf(
			"bridge %s takes part in a spanning tree and must not forward stp (list the other protocols, or ip link set %s type bridge stp_state 0)",
			br.Name, br.Name)
	case !cfg.HasVLANs() || Filters(br):
		return nil
	case br.Bridge != nil && !br.Bridge.CanFilterVLANs:
		return cannotFilter(br.Name)
	}
	return fmt.Errorf(
		"bridge %s does not filter VLANs (vmnet bridge create --vlan-filtering, or ip link set %s type bridge vlan_filtering 1)",
		br.Name, br.Name)
}

// explainSet adds the cause and cure to errors of requests about a port's settings.
func explainSet(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}

func setPort(c *rtnl.Conn, br, port *rtnl.Link, want brport.Settings) error {
	port, err := c.LinkByIndex(port.Index) // the caller may have read it before it became a port
	if err != nil {
		return err
	}
	have, err := readPort(c, br, port)
	if err != nil || have.Equal(want) {
		return err
	}
	change := changeOf(have, want)
	if !Filters(br) {
		return c.SetPort(port.Index, change)
	}
	return setVLANs(c, port, change, have, want)
}

// changeOf returns the change of the flags from have to want.
func changeOf(have, want brport.Settings) rtnl.PortChange {
	return rtnl.PortChange{
		PortFlags: flags(want),
		Flush:     want.NoLearning && !have.NoLearning, // else the addresses learned before would stay until they age
	}
}

// setVLANs sends change together with the change of the VLANs from have to want.
func setVLANs(c *rtnl.Conn, port *rtnl.Link, change rtnl.PortChange, have, want brport.Settings) error {
	change.VLANs = vlansOf(want)
	if left := leave(vlansOf(have), change.VLANs); len(left) > 0 {
		if err := c.DeletePortVLANs(port.Index, left); err != nil {
			return fmt.Errorf("leave VLANs: %w", err)
		}
	}
	return c.SetPort(port.Index, change)
}

func addSettings(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings) (changed bool, err error) {
	if port, err = c.LinkByIndex(port.Index); err != nil {
		return false, err
	}
	have, err := readPort(c, br, port)
	if err != nil {
		return false, err
	}
	want := plus(have, cfg)
	if have.Equal(want) {
		return false, nil
	}
	from := flags(have)
	change := changeOf(have, want)
	change.From = &from
	if !cfg.HasVLANs() {
		return true, c.SetPort(port.Index, change)
	}
	return true, setVLANs(c, port, change, have, want)
}

// plus returns cfg with the settings of more added: the flags of both, and the VLANs of more if it
// names any.
func plus(cfg, more brport.Settings) brport.Settings {
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

// flags returns the kernel's form of the flags of cfg.
func flags(cfg brport.Settings) rtnl.PortFlags {
	return rtnl.PortFlags{
		Hairpin: cfg.Hairpin, Isolated: cfg.Isolated, Learning: !cfg.NoLearning, Flood: !cfg.NoFlood,
		Forward: uint16(cfg.Forward),
	}
}

// vlansOf returns the kernel's form of the VLANs of cfg, which must be in normal form.
func vlansOf(cfg brport.Settings) []rtnl.VLANs {
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
	for _, r := range brport.WithoutVLANs(ranges(have), ranges(want)) {
		gone = append(gone, rtnl.VLANs{First: r.First, Last: r.Last})
	}
	return gone
}

func ranges(vlans []rtnl.VLANs) []brport.VLANRange {
	var all []brport.VLANRange
	for _, v := range vlans {
		all = append(all, brport.VLANRange{First: v.First, Last: v.Last})
	}
	return brport.MergeVLANs(all)
}

// Effective returns what ReadPort returns for a port of br that was set to cfg. On a bridge that
// filters VLANs, a port without VLANs of its own is an access port of the default VLAN.
// vmnet check compares with it.
func Effective(br *rtnl.Link, cfg brport.Settings) brport.Settings {
	cfg = cfg.Normal()
	if Filters(br) && !cfg.HasVLANs() {
		cfg.VLAN = br.Bridge.DefaultPVID
	}
	return cfg
}

// NoVLAN reports whether a port of br with the settings cfg passes no frames because br filters
// VLANs and the port is in none: br has no default VLAN (vlan_default_pvid 0), or the port was
// removed from it.
func NoVLAN(br *rtnl.Link, cfg brport.Settings) bool {
	return Filters(br) && !Effective(br, cfg).HasVLANs()
}

// ReadPort returns the current settings of a port of br. The caller must have read port after it
// became one. After SetPort with cfg, ReadPort returns Effective(br, cfg): on a bridge that filters
// VLANs, a port that was given none is an access port of the default VLAN. On a bridge that does
// not filter, the result has no VLANs.
func ReadPort(c *rtnl.Conn, br, port *rtnl.Link) (brport.Settings, error) {
	cfg, err := readPort(c, br, port)
	if err != nil {
		return cfg, fmt.Errorf("read port %s of %s: %w", port.Name, br.Name, err)
	}
	return cfg, nil
}

func readPort(c *rtnl.Conn, br, port *rtnl.Link) (brport.Settings, error) {
	if port.Port == nil || port.Master != br.Index {
		return brport.Settings{}, errors.New("it is not a port of that bridge")
	}
	if !Filters(br) {
		return SettingsOf(port, nil), nil
	}
	vlans, err := c.PortVLANs(port.Index)
	return SettingsOf(port, vlans[port.Index]), err
}

// SettingsOf returns the settings of a port from what the kernel reports.
func SettingsOf(port *rtnl.Link, vlans []rtnl.VLANs) brport.Settings {
	f := port.Port.PortFlags
	cfg := brport.Settings{
		Isolated: f.Isolated, Hairpin: f.Hairpin, NoLearning: !f.Learning, NoFlood: !f.Flood,
		Forward: brport.Protocols(f.Forward),
	}
	var untagged []brport.VLANRange
	var other []string
	for _, v := range vlans {
		r := brport.VLANRange{First: v.First, Last: v.Last}
		cfg.Trunk = append(cfg.Trunk, r)
		switch {
		case v.PVID:
			cfg.Native = v.First
			if !v.Untagged {
				other = append(other, "tagged-native:"+brport.FormatVLANs([]brport.VLANRange{r}))
			}
		case v.Untagged:
			untagged = append(untagged, r)
		}
	}
	if len(untagged) > 0 {
		other = append(other, "untagged:"+brport.FormatVLANs(untagged))
	}
	for i, on := range []bool{f.Locked, f.NoBroadcast, f.NoMulticast} {
		if on {
			other = append(other, flagWords[i])
		}
	}
	slices.Sort(other)
	cfg.Other = strings.Join(other, ";")
	return cfg.Normal()
}
