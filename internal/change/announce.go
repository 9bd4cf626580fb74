package change

import (
	"context"
	"fmt"

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
	if len(p.to.IP) > 0 {
		who = "gratuitous ARP, unsolicited neighbour advertisements: " + nic.FormatIPs(p.to.IP)
	}
	return step.Step{
		Name: "announce",
		Text: fmt.Sprintf("write to a copy of QEMU's own fd of %s: %s of %s", p.dev.Name, who, p.to.MAC),
		Do: func(ctx context.Context) error {
			p.announce(ctx)
			return nil
		},
	}
}

func (p *Plan) announce(ctx context.Context) {
	if p.to.LinkDown {
		return
	}
	if err := p.guest.Announce(ctx, p.to.NIC); err != nil {
		p.Notices = append(p.Notices, fmt.Sprintf("QEMU did not announce the guest: %v", err))
	}
	if p.dev.Tun == nil { // only the guest can send there
		return
	}
	inode, err := p.m.NS.Inode()
	if err == nil {
		err = tun.Inject(p.guest.PID(), p.dev.Name, inode, announce.Frames(p.to.MAC, p.to.IP)...)
	}
	if err != nil {
		p.Notices = append(p.Notices, fmt.Sprintf("%s was not announced on %s: %v", p.to.MAC, p.to.Source, err))
	}
}
