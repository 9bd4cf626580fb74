package ovs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/ovsdb"
)

// A Port is a port with its only interface, as the database has them.
type Port struct {
	Name     string
	Type     string // of the interface: empty for a device, "internal", "geneve"
	Bridge   string // name; empty for a port of none
	Datapath string // of the bridge
	Settings brport.Settings
	Owner    *Owner // nil: vmnet has not made it

	IfaceID   string // by which OVN knows it
	MAC       string // attached-mac, the guest's
	OFPort    int    // its OpenFlow number; 0 while it has none, -1 if it does not work
	Error     string // why it does not work, in the words of ovs-vswitchd
	LinkUp    bool   // the interface has a carrier, as ovs-vswitchd sees it
	IsOVNs    bool   // its bridge is that of a chassis of OVN
	Installed bool   // ovn-controller has installed the port's flows

	id, iface ovsdb.UUID
	owner     string // the external id
}

type portRow struct {
	ID          ovsdb.UUID            `json:"_uuid"`
	Name        string                `json:"name"`
	Interfaces  ovsdb.Set[ovsdb.UUID] `json:"interfaces"`
	Tag         ovsdb.Set[int]        `json:"tag"`
	Trunks      ovsdb.Set[int]        `json:"trunks"`
	Mode        ovsdb.Set[string]     `json:"vlan_mode"`
	Protected   bool                  `json:"protected"`
	ExternalIDs ovsdb.Map             `json:"external_ids"`
}

type ifaceRow struct {
	ID          ovsdb.UUID        `json:"_uuid"`
	Type        string            `json:"type"`
	OFPort      ovsdb.Set[int]    `json:"ofport"`
	Error       ovsdb.Set[string] `json:"error"`
	LinkState   ovsdb.Set[string] `json:"link_state"`
	ExternalIDs ovsdb.Map         `json:"external_ids"`
}

var (
	portColumns = []string{
		"_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode", "protected", "external_ids",
	}
	ifaceColumns = []string{"_uuid", "type", "ofport", "error", "link_state", "external_ids"}
)

// Ports reads all ports, of all bridges.
func (c *Conn) Ports(ctx context.Context) ([]Port, error) {
	return c.read(ctx, ovsdb.Select("Port", portColumns), ovsdb.Select("Interface", ifaceColumns))
}

// Named reads the ports of these names, as far as they exist.
func (c *Conn) Named(ctx context.Context, names ...string) ([]Port, error) {
	var ops []ovsdb.Op
	for _, name := range names {
		is := ovsdb.Where("name", "==", name)
		ops = append(ops, ovsdb.Select("Port", portColumns, is), ovsdb.Select("Interface", ifaceColumns, is))
	}
	return c.read(ctx, ops...)
}

// read reads ports by operations that select rows of tables Port and Interface in turn.
func (c *Conn) read(ctx context.Context, ops ...ovsdb.Op) ([]Port, error) {
	rs, err := c.Transact(ctx, append([]ovsdb.Op{selectRoot, ovsdb.Select("Bridge", bridgeColumns)}, ops...)...)
	if err != nil {
		return nil, err
	}
	root, err := rootOf(rs[0])
	if err != nil {
		return nil, err
	}
	bridges, err := ovsdb.Into[bridgeRow](rs[1])
	if err != nil {
		return nil, err
	}
	bridgeOf := map[ovsdb.UUID]Bridge{}
	for _, b := range bridges {
		for _, p := range b.Ports {
			bridgeOf[p] = b.bridge(root)
		}
	}
	var rows []portRow
	ifaces := map[ovsdb.UUID]ifaceRow{}
	for i := 2; i+1 < len(rs); i += 2 {
		ports, err := ovsdb.Into[portRow](rs[i])
		more, moreErr := ovsdb.Into[ifaceRow](rs[i+1])
		if err = errors.Join(err, moreErr); err != nil {
			return nil, err
		}
		rows = append(rows, ports...)
		for _, r := range more {
			ifaces[r.ID] = r
		}
	}
	var found []Port
	for _, r := range rows {
		if len(r.Interfaces) != 1 {
			continue // a bond
		}
		found = append(found, r.port(bridgeOf[r.ID], ifaces[r.Interfaces[0]]))
	}
	return found, nil
}

func (r portRow) port(b Bridge, i ifaceRow) Port {
	p := Port{
		Name: r.Name, Type: i.Type, Bridge: b.Name, Datapath: b.Datapath, IsOVNs: b.IsOVNs, Settings: r.settings(),
		IfaceID: i.ExternalIDs["iface-id"], MAC: i.ExternalIDs["attached-mac"],
		Installed: i.ExternalIDs["ovn-installed"] == "true",
		id:        r.ID, iface: r.Interfaces[0], owner: r.ExternalIDs[ownerKey],
	}
	p.Owner = parseOwner(p.owner)
	p.OFPort, _ = i.OFPort.First()
	p.Error, _ = i.Error.First()
	state, _ := i.LinkState.First()
	p.LinkUp = state == "up"
	return p
}

// Trouble says why the port does not work; empty if nothing is known to be wrong.
func (p *Port) Trouble() string {
	switch {
	case p.Error != "":
		return p.Error
	case p.OFPort < 0:
		return "it has no OpenFlow number"
	case p.OFPort == 0:
		return "ovs-vswitchd has not seen it yet"
	}
	return ""
}

// The values of column vlan_mode that vmnet uses.
const (
	modeAccess         = "access"
	modeTrunk          = "trunk"
	modeNativeUntagged = "native-untagged"
)

// settings returns the port's settings. A port without any carries all VLANs, as its zero value
// says of a bridge that does not filter.
func (r portRow) settings() brport.Settings {
	s := brport.Settings{Isolated: r.Protected}
	tag, tagged := r.Tag.First()
	mode, _ := r.Mode.First()
	if mode == "" && tagged {
		mode = modeAccess
	}
	var trunk []brport.VLANRange
	for _, id := range r.Trunks {
		trunk = append(trunk, brport.VLANRange{First: id, Last: id})
	}
	trunk = brport.MergeVLANs(trunk)
	switch {
	case mode == modeAccess && tagged && tag != 0:
		s.VLAN = tag
	case mode == modeTrunk && !tagged, mode == "":
		s.Trunk = trunk
	case mode == modeNativeUntagged && tagged:
		s.Trunk, s.Native = trunk, tag
	default:
		s.Other = fmt.Sprintf("vlan_mode:%s", mode)
	}
	return s.Normal()
}

// CheckSettings returns an error if Open vSwitch has no words for a port's settings.
func CheckSettings(s brport.Settings) error {
	var missing []string
	for flag, given := range map[string]bool{
		"--hairpin": s.Hairpin, "--no-learning": s.NoLearning, "--no-flood": s.NoFlood, "--forward": s.Forward != 0,
	} {
		if given {
			missing = append(missing, flag)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("a port of Open vSwitch has no such setting: %s (its flows decide that)",
		strings.Join(missing, ", "))
}

// columns returns the settings as columns of a row of table Port.
func columns(s brport.Settings) ovsdb.Row {
	s = s.Normal()
	tag, trunks, mode := ovsdb.Set[int]{}, ovsdb.Set[int]{}, ovsdb.Set[string]{}
	for _, r := range s.Trunk {
		for id := r.First; id <= r.Last; id++ {
			trunks = append(trunks, id)
		}
	}
	switch {
	case s.VLAN != 0:
		tag, mode = ovsdb.Set[int]{s.VLAN}, ovsdb.Set[string]{modeAccess}
	case s.Native != 0:
		tag, mode = ovsdb.Set[int]{s.Native}, ovsdb.Set[string]{modeNativeUntagged}
	case len(trunks) > 0:
		mode = ovsdb.Set[string]{modeTrunk}
	}
	return ovsdb.Row{"tag": tag, "trunks": trunks, "vlan_mode": mode, "protected": s.Isolated}
}
