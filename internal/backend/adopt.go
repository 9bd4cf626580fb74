package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What the hook does with a tap or macvtap that libvirt makes for a guest that it starts. Its name
// may be libvirt's choice, so a clone of a guest starts with a NIC of its own.

// adoption is a NIC whose interface libvirt makes and holds.
type adoption struct {
	*NIC
	found interface {
		// adopt has the steps work on that link. It returns an error unless libvirt has made the
		// link for the guest, and nobody has put it on a bridge since. One of the processes makers
		// must hold it.
		adopt(l *rtnl.Link, makers []int) error
	}
}

// adopts begins a NIC on an interface that libvirt makes, and plans it; it changes nothing.
func (m *Maker) adopts(ctx context.Context, spec nic.Spec) (*adoption, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	spec.Via = nic.ViaLibvirt
	h := m.New(spec, nic.PhaseStarting)
	a := &adoption{NIC: h}
	if lower, ok := h.host.(*namedMacvtap); ok {
		adopted := &adoptedMacvtap{*lower}
		h.host, a.found = adopted, adopted
	} else {
		adopted := &adoptedTap{newPlacedTap(hostTap{m: m, spec: spec, files: &h.Files, staysDown: spec.Prepared})}
		h.host, a.found = adopted, adopted
	}
	return a, explainPrepare(spec, m.planPrepare(ctx, h))
}

// Expect clears the way for an interface that libvirt is about to make: the bridge or parent device
// of the Spec is there, and no interface has its name. It removes what a former start of the guest
// has left. If an interface has that name, the error matches nic.ErrExist and says whose it is.
func (m *Maker) Expect(ctx context.Context, spec nic.Spec) error {
	a, err := m.adopts(ctx, spec)
	if err != nil {
		return err
	}
	return explainPrepare(spec, m.expect(ctx, a.Spec))
}

func (m *Maker) expect(ctx context.Context, spec nic.Spec) error {
	former, err := m.unstarted(ctx, spec)
	if err != nil {
		return err
	}
	if former != nil {
		if err := m.Run.Do(ctx, []step.Step{m.deleteFormer(former)}); err != nil {
			return err
		}
	}
	if spec.Lower != nil {
		if err := m.freeNode(); err != nil {
			return step.WithStage(nic.ErrLink, err)
		}
	}
	if spec.Device == "" { // libvirt finds a name
		return nil
	}
	l, err := m.NL.Link(spec.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	return fmt.Errorf(
		"%w: interface %s, %s (remove <target dev='%s'/> from the interface of one of the two, and libvirt finds a name: virsh edit %s)",
		nic.ErrExist, l.Name, ownerText(l), spec.Device, spec.VM)
}

// Adopt turns an interface that libvirt has made for a guest, and that the Spec names as its
// Device, into the NIC of the Spec: it puts a tap on its bridge, and gives a macvtap what libvirt
// cannot express. From then on its alias says that it is the NIC's. An interface that is adopted
// already is left as it is. One of the processes makers must hold it. The error matches
// fs.ErrNotExist if there is no such interface, and nic.ErrExist if libvirt has not made it for
// that MAC.
func (m *Maker) Adopt(ctx context.Context, spec nic.Spec, makers ...int) (nic.Result, error) {
	a, err := m.adopts(ctx, spec)
	if err != nil {
		return nic.Result{}, err
	}
	res, err := m.adopt(ctx, a, makers)
	return res, explainPrepare(spec, err)
}

func (m *Maker) adopt(ctx context.Context, a *adoption, makers []int) (nic.Result, error) {
	l, err := m.NL.Link(a.Spec.Device)
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrLink, err)
	}
	if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == a.Spec.VM && r.NIC == a.Spec.NIC {
		return nic.Result{}, nil // adopted already
	}
	if err := a.found.adopt(l, makers); err != nil {
		return nic.Result{}, err
	}
	steps, err := a.HostSteps(0)
	if err != nil {
		return nic.Result{}, err
	}
	if err := m.Run.Do(ctx, step.InStage(nic.ErrLink, steps...)); err != nil {
		return nic.Result{}, err
	}
	return a.prepared()
}

// adoptedTap is a tap that libvirt has made. It goes with the process that holds it.
type adoptedTap struct{ placedTap }

// adopt takes a tap with any holder: its name decides which one libvirt has opened.
func (s *adoptedTap) adopt(l *rtnl.Link, _ []int) error {
	switch {
	case !inventory.IsForeign(l, "tun") || l.Tun == nil || !l.Tun.Attached ||
		!bytes.Equal(l.MAC, stablemac.HostMAC(s.spec.MAC)):
		return fmt.Errorf("%w: interface %s, %s, and not the tap that libvirt makes for MAC %s",
			nic.ErrExist, l.Name, ownerText(l), s.spec.MAC)
	case l.Master != 0 && (s.master() == nil || l.Master != s.master().Index):
		return fmt.Errorf("%w: somebody has made %s a port of %s", nic.ErrExist, l.Name, s.m.MasterName(l))
	}
	s.link = l
	return nil
}

// steps first set the tap down, which libvirt has set up: so it loses the addresses of the host's
// IPv6.
func (s *adoptedTap) steps(w making) []step.Step {
	list := append([]step.Step{{
		Name: "down",
		Text: fmt.Sprintf("RTM_SETLINK %s: down", s.name),
		Do:   func(context.Context) error { return s.m.NL.Set(s.link.Index, rtnl.Up(false)) },
	}}, s.linkSteps(w.underWay)...)
	list = append(list, s.policing(w)...)
	return append(list, s.put(&s.hostTap, w)...)
}

// adoptedMacvtap is a macvtap that libvirt has made. Libvirt removes it.
type adoptedMacvtap struct{ namedMacvtap }

// adopt compares the device numbers of the nodes that libvirt has opened: the path of a node may be
// that of a macvtap in another netns, since devtmpfs has the nodes of all of them.
func (s *adoptedMacvtap) adopt(l *rtnl.Link, makers []int) error {
	if !inventory.IsForeign(l, string(vtap.Macvtap)) || l.Lower != s.parent.Index || l.LowerNS >= 0 ||
		!bytes.Equal(l.MAC, s.spec.MAC) {
		return fmt.Errorf("%w: interface %s, %s, and not the macvtap that libvirt makes on %s for MAC %s",
			nic.ErrExist, l.Name, ownerText(l), s.parent.Name, s.spec.MAC)
	}
	held := false
	for _, pid := range makers {
		fds, err := macvlan.QueuesOf(pid, s.m.NS, l)
		if err != nil {
			return fmt.Errorf("who holds %s: %w", l.Name, err)
		}
		held = held || len(fds) > 0
	}
	if !held {
		return notOpened(l)
	}
	s.link = l
	return nil
}

// steps set what libvirt cannot express. Libvirt sets the interface up when the guest's processors
// start.
func (s *adoptedMacvtap) steps(w making) []step.Step {
	more := fmt.Sprintf(", mtu %d, alias %q", s.parent.MTU, w.underWay)
	list := append([]step.Step{s.linkStep(more, rtnl.MTU(s.parent.MTU), rtnl.Alias(w.underWay))}, s.altNameSteps()...)
	list = append(list, s.policing(w)...)
	if s.spec.Lower.Mode != "source" {
		return list
	}
	return append(list, step.Step{
		Name: "sources",
		Text: fmt.Sprintf("RTM_NEWLINK %s: mode source, %d senders", s.name, len(s.spec.Lower.Sources)),
		Do: func(context.Context) error {
			return macvlan.SetSources(s.m.NL, s.link, s.spec.Lower.Sources)
		},
	})
}

// freeNode makes sure that the next macvtap that the kernel makes in this netns, with an index of
// its choice, finds no node of its name in /dev: devtmpfs keeps the node of a macvtap in another
// netns, and libvirt would open that. Taps that are removed at once use up the indices for which
// there is such a node.
func (m *Maker) freeNode() error {
	for range indexTries {
		foreign, err := m.foreignNodes()
		if err != nil || len(foreign) == 0 {
			return err
		}
		tap, err := tun.CreateLike(m.NS, "vmnet-free%d")
		if err != nil {
			return err
		}
		l, err := m.NL.Link(tap.Name)
		if err := errors.Join(err, tap.Close()); err != nil {
			return err
		}
		if !slices.Contains(foreign, l.Index+1) {
			return nil
		}
	}
	return fmt.Errorf(
		"%w: macvtaps in other netns have the nodes in /dev of the next %d that libvirt could make (find who makes them: lsns -t net)",
		nic.ErrExist, indexTries)
}

// foreignNodes returns the indices of the nodes in /dev that belong to no macvtap of the Maker's
// netns.
func (m *Maker) foreignNodes() ([]int, error) {
	foreign, err := macvlan.Nodes()
	if err != nil || len(foreign) == 0 {
		return nil, err
	}
	for _, kind := range []vtap.Kind{vtap.Macvtap, vtap.IPVtap} {
		own, err := m.NL.Links(string(kind), 0)
		if err != nil {
			return nil, err
		}
		for _, l := range own {
			foreign = slices.DeleteFunc(foreign, func(index int) bool { return index == l.Index })
		}
	}
	return foreign, nil
}
