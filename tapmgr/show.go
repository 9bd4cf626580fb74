package tapmgr

import (
	"context"
	"fmt"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// Detail explains one NIC.
type Detail struct {
	nic.NIC
	Index     int               `json:"index"`
	AltNames  []string          `json:"altnames,omitempty"`
	HostMAC   string            `json:"host_mac"`
	HostMTU   int               `json:"host_mtu"` // bytes, of the tap
	Holders   []nic.Holder      `json:"holders"`  // who has its queues open
	VhostFDs  []int             `json:"vhost_fds"`
	Bridge    string            `json:"bridge,omitempty"`    // that a tap is on now
	Lower     string            `json:"lower,omitempty"`     // that a macvtap or ipvtap is on now
	RxFilter  string            `json:"rx_filter,omitempty"` // of a macvtap or ipvtap
	Mirrored  bool              `json:"mirrored,omitempty"`  // with RxMirror: the guest's groups are taken in, and no others
	Socket    string            `json:"socket,omitempty"`    // of the userspace switch that it belongs on: path of its control socket
	Netns     string            `json:"netns,omitempty"`     // path of the netns that a macvtap or ipvtap is in
	ForwardIn float64           `json:"forwards_in_seconds,omitempty"`
	Learned   []bridge.Learned  `json:"learned"`
	Counters  rtnl.Stats        `json:"counters"`        // as the host counts: rx comes from the guest
	Drops     map[string]uint64 `json:"drops,omitempty"` // at a switch's port, by reason
	Guest     *GuestView        `json:"guest"`           // nil where it could not be asked
	Notices   []string          `json:"notices,omitempty"`
}

// GuestView is what the guest's VMM says of the NIC.
type GuestView struct {
	Device      string   `json:"device"`
	Plugged     bool     `json:"plugged"`
	MAC         string   `json:"mac,omitempty"` // that the guest's driver uses
	Promiscuous bool     `json:"promiscuous"`
	Multicast   []string `json:"multicast,omitempty"`
	VLANs       []int    `json:"vlans,omitempty"` // that the driver asked for; none where it takes all
}

// Show explains all NICs of a guest, at last those that libvirt has made itself. The guest's view needs its monitor; where that
// is in use, a notice says so instead.
func (m *Manager) Show(ctx context.Context, vm string) ([]Detail, error) {
	links, err := m.inventory(ctx)
	if err != nil {
		return nil, err
	}
	details := []Detail{}
	guests := map[int]*guestViews{} // there may be two of one name, or any number that say so
	asking, cancel := context.WithTimeoutCause(ctx, othersWait, fmt.Errorf("guests have taken %v", othersWait))
	defer cancel()
	for _, o := range links {
		if o.want.VM != vm {
			continue
		}
		d, err := m.detail(ctx, o)
		if err != nil {
			return nil, err
		}
		if pid := o.vmm(); pid != 0 {
			if guests[pid] == nil {
				guests[pid] = m.openViews(asking, o)
				defer guests[pid].Close()
			}
			guests[pid].fill(asking, &d)
		}
		details = append(details, d)
	}
	foreign, err := m.foreignDetails(ctx, vm)
	return append(details, foreign...), err
}

// detail is what the kernel says.
func (m *Manager) detail(ctx context.Context, o ours) (Detail, error) {
	d := Detail{
		NIC: o.state(m.describe(o)), Index: o.Index, AltNames: o.AltNames, HostMAC: o.MAC.String(), HostMTU: o.MTU,
		Holders: append([]nic.Holder{}, o.holders...), VhostFDs: []int{}, Bridge: o.master, Learned: []bridge.Learned{}, Counters: o.Stats,
	}
	if o.want.Switch {
		m.detailSeat(ctx, &d, o)
	} else if o.want.Type != nic.TypeTap {
		d.Lower, d.RxFilter = m.lowerName(&o), rxFilter(&o)
		d.Mirrored = d.RxFilter == nic.RxMirror && !o.AllMulti
	}
	if o.gone {
		d.HostMAC, d.Lower = "", ""
	}
	if o.in != nil {
		d.Netns = o.in.Path()
	}
	if o.want.Vhost {
		if pid := o.vmm(); pid != 0 {
			d.VhostFDs = vhost.FDs(pid)
		}
	}
	if o.Port == nil {
		return d, nil
	}
	br, err := m.nl.LinkByIndex(o.Master)
	if err != nil {
		return d, err
	}
	d.ForwardIn = bridge.ForwardsIn(o.Link, br).Seconds()
	learned, err := bridge.LearnedBy(m.nl, o.Master, o.Index)
	if err != nil {
		return d, err
	}
	d.Learned = append(d.Learned, learned[o.Index]...)
	return d, nil
}

// maxLearned is how many addresses behind one port are told of: the switch may be anybody's.
const maxLearned = 4096

// detailSeat is what the switch says.
func (m *Manager) detailSeat(ctx context.Context, d *Detail, o ours) {
	d.Socket = o.seat.path
	if o.isSocket() {
		d.HostMAC = ""
	}
	if o.seat.err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("its switch was not asked: %v", o.seat.err))
		return
	}
	if o.seat.port == nil {
		return
	}
	if st := o.seat.port.Stats; st != nil {
		d.Drops = st.Drops
		if o.isSocket() {
			t := st.Total()
			d.Counters = rtnl.Stats{RxPackets: t.RxFrames, RxBytes: t.RxBytes, TxPackets: t.TxFrames, TxBytes: t.TxBytes}
		}
	}
	err := withSwitch(ctx, o.seat.path, func(ctx context.Context, c *control.Client) error {
		return c.EachFDB(ctx, func(e control.FDBEntry) error {
			if e.Port == o.seat.port.Name && len(d.Learned) < maxLearned {
				d.Learned = append(d.Learned, bridge.Learned{MAC: e.MAC, VLAN: e.VLAN})
			}
			return nil
		})
	})
	if err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("what the switch has learned is not known: %v", err))
	}
}

// guestViews asks one guest about its NICs.
type guestViews struct {
	vm     vmm
	err    error
	cancel context.CancelFunc
}

func (m *Manager) openViews(ctx context.Context, o ours) *guestViews {
	ctx, cancel := monitorTimeout(ctx)
	vm, err := m.openRead(ctx, o)
	return &guestViews{vm, err, cancel}
}

func (g *guestViews) Close() {
	g.cancel()
	if g.vm != nil {
		_ = g.vm.Close()
	}
}

func (g *guestViews) fill(ctx context.Context, d *Detail) {
	ctx, cancel := monitorTimeout(ctx)
	defer cancel()
	err := g.err
	if err == nil {
		d.Guest, err = g.view(ctx, d.NIC.ID, d.Via)
	}
	if err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("the guest was not asked: %v", err))
	}
}

func (g *guestViews) view(ctx context.Context, nicID string, via nic.Via) (*GuestView, error) {
	v := &GuestView{Device: nic.DeviceOf(nicID, via)}
	var err error
	if v.Plugged, err = g.vm.has(ctx, nicID); err != nil || !v.Plugged {
		return v, err
	}
	f, err := g.vm.rxFilter(ctx, nicID)
	if f == nil || err != nil {
		return v, err
	}
	v.MAC, v.Promiscuous, v.Multicast = f.MainMAC, f.Promiscuous, f.MulticastTable
	if f.VLAN == "normal" { // else it is none or all of them
		v.VLANs = f.VLANTable
	}
	return v, nil
}
