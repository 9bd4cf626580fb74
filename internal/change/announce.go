package change

import (
	"context"
	"fmt"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/tun"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// announceStep has the new neighbours learn where the guest is now: the host writes frames
// with the guest's address to a copy of the queue that QEMU has, so they pass what its frames pass.
// It is no failure if that cannot be done: the guest's next frame says the same.
func (p *Plan) announceStep() step.Step {
	who := "RARP"
	if trunk := p.to.PortConfig(); len(trunk.Trunk) > 0 && trunk.Native == 0 {
		who = "RARP in the trunk's VLANs"
	} else if len(p.to.IP) > 0 {
		who = "gratuitous ARP, unsolicited neighbour advertisements: " + nic.FormatIPs(p.to.IP)
		if p.to.Type == nic.TypeOVS {
			who = "RARP, " + who
		}
	}
	text := fmt.Sprintf("write to a copy of QEMU's own fd of %s: %s of %s; announce-self", p.dev.Name, who, p.to.MAC)
	switch {
	case p.dev.IsSocket():
		text = fmt.Sprintf("switch %s: announce %s on port %s: %s; announce-self",
			p.to.Source, p.to.MAC, p.dev.Name, who)
	case p.dev.Tun == nil:
		text = "announce-self"
	}
	return step.Step{
		Name: "announce",
		Text: text,
		Do: func(ctx context.Context) error {
			p.announce(ctx)
			return nil
		},
	}
}

// maxVLANs bounds the VLANs of a trunk in which a guest is announced.
const maxVLANs = 64

// announcement returns the frames that announce a guest. In the VLANs of a trunk only its MAC is
// announced, to switches: which of the VLANs its addresses are in is not known.
func announcement(r nic.Record) (frames [][]byte) {
	cfg := r.PortConfig()
	if len(cfg.Trunk) == 0 || cfg.Native != 0 {
		if r.Type == nic.TypeOVS && len(r.IP) > 0 { // OVN opens the port of a guest that has moved by RARP alone
			frames = announce.Frames(r.MAC, nil)
		}
		frames = append(frames, announce.Frames(r.MAC, r.IP)...)
	}
	for _, vlan := range firstVLANs(cfg.Trunk, maxVLANs) {
		for _, f := range announce.Frames(r.MAC, nil) {
			frames = append(frames, announce.Tagged(f, vlan))
		}
	}
	return frames
}

// firstVLANs returns at most that many VLANs of ranges.
func firstVLANs(ranges []brport.VLANRange, most int) (vlans []int) {
	for _, r := range ranges {
		for vlan := r.First; vlan <= r.Last && len(vlans) < most; vlan++ {
			vlans = append(vlans, vlan)
		}
	}
	return vlans
}

// inject has the guest's side send the frames that announce it: on a macvtap or ipvtap only the
// guest itself can.
func (p *Plan) inject(ctx context.Context) error {
	switch {
	case p.dev.IsSocket():
		return p.m.Announce(ctx, p.to, p.dev.Name, announcement(p.to))
	case p.dev.Tun == nil:
		return nil
	}
	inode, err := p.m.NS.Inode()
	if err != nil {
		return err
	}
	return tun.Inject(p.guest.PID(), p.dev.Name, inode, announcement(p.to)...)
}

func (p *Plan) announce(ctx context.Context) {
	if p.to.LinkDown {
		return
	}
	if err := p.inject(ctx); err != nil { // first: QEMU may be slow to answer
		p.Notices = append(p.Notices, fmt.Sprintf("%s was not announced on %s: %v", p.to.MAC, p.to.Source, err))
	}
	if err := p.guest.Announce(ctx, p.to.NIC); err != nil {
		p.Notices = append(p.Notices, fmt.Sprintf("QEMU did not announce the guest: %v", err))
	}
}
