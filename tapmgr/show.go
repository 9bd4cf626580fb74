package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/switches"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// Detail explains one NIC.
type Detail struct {
	nic.NIC
	Index    int          `json:"index"`
	AltNames []string     `json:"altnames,omitempty"`
	HostMAC  string       `json:"host_mac"`
	HostMTU  int          `json:"host_mtu"` // bytes, of the tap
	Holders  []nic.Holder `json:"holders"`  // who has its queues open
	VhostFDs []int        `json:"vhost_fds"`
	Bridge   string       `json:"bridge,omitempty"`    // that a tap is a port of now
	Lower    string       `json:"lower,omitempty"`     // that a macvtap or ipvtap is on now
	RxFilter string       `json:"rx_filter,omitempty"` // of a macvtap or ipvtap
	// with RxMirror: the guest's groups are taken in, and no others
	Mirrored bool `json:"mirrored,omitempty"`
	// of the userspace switch that it belongs on: path of its control socket
	Socket string `json:"socket,omitempty"`
	// of a port of Open vSwitch; nil if it has none, or could not be asked
	OVS       *OVSDetail    `json:"ovs,omitempty"`
	Netns     string        `json:"netns,omitempty"` // path of the netns that a macvtap or ipvtap is in
	ForwardIn float64       `json:"forwards_in_seconds,omitempty"`
	Addresses []nic.Address `json:"addresses"` // of the guest, IPv4 first
	// of a routed NIC
	GuestConfig *nic.GuestConfig  `json:"guest_config,omitempty"`
	Learned     []brport.Learned  `json:"learned"`
	Counters    Counters          `json:"counters"`        // as the host counts: rx comes from the guest
	Drops       map[string]uint64 `json:"drops,omitempty"` // by port security or a switch, by reason
	Guest       *GuestView        `json:"guest"`           // nil if it could not be asked
	Notices     []string          `json:"notices,omitempty"`
}

// OVSDetail is what Open vSwitch says of its port.
type OVSDetail struct {
	OFPort    int    `json:"ofport"` // its OpenFlow number; -1 if it does not work
	Error     string `json:"error,omitempty"`
	LinkUp    bool   `json:"link_up"`
	Datapath  string `json:"datapath"` // of the bridge: "system", "netdev"
	IsOVNs    bool   `json:"ovn"`      // the bridge is that of a chassis of OVN
	Installed bool   `json:"ovn_installed"`
}

// Counters count frames and bytes since the host interface was made.
type Counters struct {
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxErrors  uint64 `json:"rx_errors"`
	TxErrors  uint64 `json:"tx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
}

// GuestView is what the guest's VMM says of a NIC.
type GuestView struct {
	Device      string   `json:"device"`
	Plugged     bool     `json:"plugged"`
	MAC         string   `json:"mac,omitempty"` // that the guest's driver uses
	Promiscuous bool     `json:"promiscuous"`
	Multicast   []string `json:"multicast,omitempty"`
	VLANs       []int    `json:"vlans,omitempty"` // that the driver asked for; none if it receives all

	// What only QEMU's own monitor says; empty and nil if it is not known.
	RunState string `json:"run_state,omitempty"` // of the machine, such as "running" and "paused"
	Driver   *bool  `json:"driver,omitempty"`    // the guest's driver has started the device
	Broken   *bool  `json:"broken,omitempty"`    // QEMU has stopped the device after an error of its driver
	LinkUp   *bool  `json:"link_up,omitempty"`   // the driver sees a carrier
	OnVhost  *bool  `json:"on_vhost,omitempty"`  // vhost-net moves the frames now
}

// Show returns details of all NICs of a guest, those that libvirt has made itself last. The guest's
// view needs its monitor; if that is in use, a notice says so instead.
func (m *Manager) Show(ctx context.Context, vm string) ([]Detail, error) {
	links, err := m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	details := []Detail{}
	guests := map[int]*guestViews{} // there may be two of one name, or any number that say so
	asking, cancel := context.WithTimeoutCause(ctx, guest.OthersWait,
		fmt.Errorf("guests have taken %v", guest.OthersWait))
	defer cancel()
	for _, dev := range links {
		if dev.Want.VM != vm {
			continue
		}
		d, err := m.detail(ctx, dev)
		if err != nil {
			return nil, err
		}
		if pid := dev.VMMPID(); pid != 0 && !dev.IsOpenedByName() {
			if guests[pid] == nil {
				guests[pid] = m.openViews(asking, dev)
				defer guests[pid].Close()
			}
			guests[pid].fill(asking, &d)
		}
		details = append(details, d)
	}
	foreign, err := m.foreignDetails(ctx, vm)
	details = append(details, foreign...)
	nics := make([]nic.NIC, len(details))
	for i := range details {
		nics[i] = details[i].NIC
	}
	for i, found := range m.addressesOf(ctx, nics, agentWait) {
		details[i].Addresses = found
	}
	return details, err
}

// agentWait is how long Show waits for guests' agents.
const agentWait = time.Second

// Traffic returns the counters from the guest's side.
func (d *Detail) Traffic() *nic.Traffic {
	kind := d.Type
	if d.Switch {
		kind = nic.TypeTap // as a tap, a switch's port receives what the guest sends
	}
	return trafficOf(rtnl.Stats(d.Counters), kind)
}

// detail returns what the kernel says of a NIC.
func (m *Manager) detail(ctx context.Context, dev inventory.Device) (Detail, error) {
	d := Detail{
		NIC: dev.NIC(), Index: dev.Index, AltNames: dev.AltNames, HostMAC: dev.MAC.String(), HostMTU: dev.MTU,
		Holders: append([]nic.Holder{}, dev.Holders...), VhostFDs: []int{}, Bridge: dev.MasterName,
		Learned: []brport.Learned{}, Counters: Counters(dev.Stats), GuestConfig: dev.NIC().GuestConfig(),
	}
	if dev.Want.Switch {
		m.detailPort(ctx, &d, dev)
	} else if !nic.HasTap(dev.Want.Type) {
		d.Lower, d.RxFilter = m.host.LowerName(&dev), inventory.RxFilter(&dev)
		d.Mirrored = d.RxFilter == nic.RxMirror && !dev.AllMulti
	}
	m.detailDrops(&d, dev)
	d.OVS = ovsDetail(dev.OVS.Port)
	if dev.OVS.Err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("Open vSwitch was not asked: %v", dev.OVS.Err))
	}
	if dev.Deleted {
		d.HostMAC, d.Lower = "", ""
	}
	if dev.NetnsFile != nil {
		d.Netns = dev.NetnsFile.Path()
	}
	if dev.Want.Vhost {
		if pid := dev.VMMPID(); pid != 0 {
			d.VhostFDs = vhost.FDs(pid)
		}
	}
	if dev.Port == nil {
		return d, nil
	}
	br, err := m.host.NL.LinkByIndex(dev.Master)
	if err != nil {
		return d, err
	}
	d.ForwardIn = bridges.ForwardsIn(dev.Link, br).Seconds()
	learned, err := bridges.LearnedBy(m.host.NL, dev.Master, dev.Index)
	if err != nil {
		return d, err
	}
	d.Learned = append(d.Learned, learned[dev.Index]...)
	return d, nil
}

// detailDrops adds what the kernel has dropped of the guest's frames, and of those for it.
func (m *Manager) detailDrops(d *Detail, dev inventory.Device) {
	add := func(why string, n uint64) {
		if n > 0 {
			if d.Drops == nil {
				d.Drops = map[string]uint64{}
			}
			d.Drops[why] = n
		}
	}
	guard, err := m.host.Guard(&dev)
	filters, inErr := m.host.Inbound(&dev)
	if err := errors.Join(err, inErr); err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("what port security has dropped is not known: %v", err))
	}
	if guard != nil {
		for why, n := range guard.Drops {
			add(portsec.Reason(why).String(), n)
		}
	}
	if filters != nil {
		add(inbound.Refused, filters.Dropped)
	}
}

// maxLearned bounds the addresses behind one port: any user can run the switch.
const maxLearned = 4096

// detailPort adds what the switch says of a NIC.
func (m *Manager) detailPort(ctx context.Context, d *Detail, dev inventory.Device) {
	d.Socket = dev.SwitchPort.Path
	if dev.IsSocket() {
		d.HostMAC = ""
	}
	if dev.SwitchPort.Err != nil {
		d.Notices = append(d.Notices, fmt.Sprintf("its switch was not asked: %v", dev.SwitchPort.Err))
		return
	}
	if dev.SwitchPort.Port == nil {
		return
	}
	if st := dev.SwitchPort.Port.Stats; st != nil {
		d.Drops = st.Drops
		if dev.IsSocket() {
			t := st.Total()
			d.Counters = Counters{RxPackets: t.RxFrames, RxBytes: t.RxBytes, TxPackets: t.TxFrames, TxBytes: t.TxBytes}
		}
	}
	err := switches.With(ctx, dev.SwitchPort.Path, func(ctx context.Context, c *control.Client) error {
		return c.EachFDB(ctx, func(e control.FDBEntry) error {
			if e.Port == dev.SwitchPort.Port.Name && len(d.Learned) < maxLearned {
				d.Learned = append(d.Learned, brport.Learned{MAC: e.MAC, VLAN: e.VLAN})
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
	guest  *openGuest
	err    error
	cancel context.CancelFunc
}

func (m *Manager) openViews(ctx context.Context, dev inventory.Device) *guestViews {
	ctx, cancel := guest.WithTimeout(ctx)
	g, err := m.openToRead(ctx, dev)
	return &guestViews{g, err, cancel}
}

func (g *guestViews) Close() {
	g.cancel()
	if g.guest != nil {
		_ = g.guest.Close()
	}
}

func (g *guestViews) fill(ctx context.Context, d *Detail) {
	ctx, cancel := guest.WithTimeout(ctx)
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
	if v.Plugged, err = g.guest.Has(ctx, nicID); err != nil {
		return nil, err
	}
	if !v.Plugged {
		return v, nil
	}
	if g.guest.Monitor == nil { // only QEMU knows the filter, and to ask it would taint the domain
		return v, nil
	}
	if err := g.condition(ctx, v); err != nil {
		return v, err
	}
	f, err := g.guest.Monitor.RxFilter(ctx, nicID)
	if f == nil || err != nil {
		return v, err
	}
	v.MAC, v.Promiscuous, v.Multicast = f.MainMAC, f.Promiscuous, f.MulticastTable
	if f.VLAN == "normal" { // otherwise it receives none or all of them
		v.VLANs = f.VLANTable
	}
	return v, nil
}

// condition adds how far the NIC works.
func (g *guestViews) condition(ctx context.Context, v *GuestView) error {
	conn := g.guest.Monitor.QMP()
	state, err := conn.RunState(ctx)
	if err != nil {
		return err
	}
	found, err := conn.Condition(ctx, v.Device)
	v.RunState, v.Driver, v.Broken = string(state), found.Driver, found.Broken
	v.LinkUp, v.OnVhost = found.LinkUp, found.Vhost
	return err
}

// ovsDetail returns what Open vSwitch says of a port; nil for none.
func ovsDetail(p *ovs.Port) *OVSDetail {
	if p == nil {
		return nil
	}
	return &OVSDetail{
		OFPort: p.OFPort, Error: p.Error, LinkUp: p.LinkUp, Datapath: p.Datapath, IsOVNs: p.IsOVNs,
		Installed: p.Installed,
	}
}
