package bridge

import (
	"cmp"
	"fmt"
	"slices"

	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// VXLAN is the current state of a bridge's VXLAN device.
type VXLAN struct {
	Interface string `json:"interface"`
	VNI       int    `json:"vni"` // 0 with a Map
	Local     string `json:"local"`
	Port      int    `json:"port"` // UDP
	MTU       int    `json:"mtu"`  // bytes
	Up        bool   `json:"up"`

	// Static says that the remote hosts were listed when the device was made. Otherwise another
	// program adds them, such as FRR.
	Static bool `json:"static"`

	Remotes []string `json:"remotes"`     // the hosts that get broadcasts
	MACs    int      `json:"remote_macs"` // how many addresses are known behind them
	Foreign bool     `json:"foreign"`     // vmnet has not made it

	// Map has the segment of each VLAN, in ascending order, of a device that carries several.
	Map []Segment `json:"map,omitempty"`
}

// Segment is what a VXLAN device with a map has of one VLAN.
type Segment struct {
	VLAN    int      `json:"vlan"`        // 0 if no VLAN of the port is in the segment
	VNI     int      `json:"vni"`         // 0 if the VLAN is in none
	Remotes []string `json:"remotes"`     // the hosts that get its broadcasts
	MACs    int      `json:"remote_macs"` // how many addresses are known behind them

	// Trouble says what keeps its frames from passing; empty if nothing here does.
	Trouble string `json:"trouble,omitempty"`
}

// SegmentMap returns which VLAN is in which segment.
func (v VXLAN) SegmentMap() vxlan.Map {
	vnis := map[int]int{}
	for _, s := range v.Map {
		if s.Trouble == "" {
			vnis[s.VLAN] = s.VNI
		}
	}
	return vxlan.MapOf(vnis)
}

// Segments returns the VNIs that the device carries, in ascending order.
func (v VXLAN) Segments() []int {
	if v.Map == nil {
		return []int{v.VNI}
	}
	return v.SegmentMap().VNIs()
}

// vxlanSteps returns the steps that make the VXLAN device of a bridge as cfg says.
func (h *Host) vxlanSteps(cfg Config) ([]step.Step, error) {
	if cfg.VXLAN == nil {
		return nil, nil
	}
	there := func() (*rtnl.Link, error) { return bridges.Get(h.nl, cfg.Name) }
	return bridges.VXLANSteps(h.nl, cfg.Name, *cfg.VXLAN, cfg.MTU, there)
}

func (h *Host) deleteVXLANs(bridge string, own []*rtnl.Link) error {
	for _, l := range own {
		if err := rtnl.IgnoreNotExist(h.nl.Delete(l.Index)); err != nil {
			return fmt.Errorf("delete %s of bridge %s: %w", l.Name, bridge, bridges.Explain(err))
		}
	}
	return nil
}

// vxlan describes the first of a bridge's ports that is a VXLAN device; nil if there is none.
func (h *Host) vxlan(br *rtnl.Link, ports []*rtnl.Link) (*VXLAN, error) {
	i := slices.IndexFunc(ports, func(l *rtnl.Link) bool { return l.VXLAN != nil })
	if i < 0 {
		return nil, nil //nolint:nilnil // a bridge of this host alone
	}
	l := ports[i]
	entries, err := h.nl.RemoteFDB(l.Index)
	if err != nil {
		return nil, err
	}
	of, own := bridges.VXLANOf(l)
	v := &VXLAN{
		Interface: l.Name, VNI: l.VXLAN.VNI, Local: l.VXLAN.Local.String(), Port: l.VXLAN.Port, MTU: l.MTU, Up: l.Up,
		Static: l.VXLAN.Learning, Foreign: !own || of != br.Name,
	}
	v.Remotes, v.MACs = behind(entries)
	if l.VXLAN.VNIFilter {
		v.Map, err = h.segments(l, entries)
	}
	return v, err
}

// behind returns the remote hosts that get broadcasts, and how many addresses are known.
func behind(entries []rtnl.RemoteEntry) (hosts []string, macs int) {
	hosts = []string{}
	known := map[string]bool{}
	for _, e := range entries {
		if e.IsFlood() {
			hosts = append(hosts, e.Dst.String())
		} else {
			known[fmt.Sprint(e.VNI, e.MAC)] = true
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), len(known)
}

// segments describes the segments of a device with a map.
func (h *Host) segments(l *rtnl.Link, entries []rtnl.RemoteEntry) ([]Segment, error) {
	m, err := bridges.ReadMap(h.nl, l)
	if err != nil {
		return nil, err
	}
	byVNI := map[int][]rtnl.RemoteEntry{}
	for _, e := range entries {
		byVNI[e.VNI] = append(byVNI[e.VNI], e)
	}
	found := []Segment{}
	add := func(vlan, vni int, trouble string) {
		s := Segment{VLAN: vlan, VNI: vni, Trouble: trouble}
		s.Remotes, s.MACs = behind(byVNI[vni])
		found = append(found, s)
	}
	for vlan, vni := range m.VLANs {
		switch {
		case vni == 0:
			add(vlan, 0, fmt.Sprintf("VLAN %d of port %s has no VNI", vlan, l.Name))
		case !m.VNIs[vni]:
			add(vlan, vni, fmt.Sprintf("%s drops what arrives of VNI %d", l.Name, vni))
		default:
			add(vlan, vni, "")
		}
		delete(m.VNIs, vni)
	}
	for vni := range m.VNIs {
		add(0, vni, fmt.Sprintf("no VLAN of port %s is in VNI %d", l.Name, vni))
	}
	slices.SortFunc(found, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.VLAN, b.VLAN), cmp.Compare(a.VNI, b.VNI))
	})
	return found, nil
}
