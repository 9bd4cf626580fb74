package bridge

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// VXLAN is the current state of a bridge's VXLAN device.
type VXLAN struct {
	Interface string `json:"interface"`
	VNI       int    `json:"vni"`
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
		Static: l.VXLAN.Learning, Remotes: []string{}, Foreign: !own || of != br.Name,
	}
	macs := map[string]bool{}
	for _, e := range entries {
		if e.IsFlood() {
			v.Remotes = append(v.Remotes, e.Dst.String())
		} else {
			macs[e.MAC.String()] = true
		}
	}
	v.MACs = len(macs)
	slices.SortFunc(v.Remotes, strings.Compare)
	return v, nil
}
