package tapmgr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/stablemac"
	"vmnet/internal/step"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// What the hook does for a tap or macvtap that libvirt makes for a guest that it starts, and that is
// to be ours: its name may be libvirt's choice, so a clone of a guest starts with a NIC of its own.

// adoptedSide is a host's side that libvirt has made and holds.
type adoptedSide interface {
	hostSide
	// take is the first of the steps: the side works on that device from then on. An error tells why it
	// is not one that libvirt has made for the guest and put nowhere. makers are the processes of which
	// one must hold it.
	take(l *rtnl.Link, makers []int) error
}

// adoptedTap is a tap that libvirt has made. It goes with whoever holds it.
type adoptedTap struct{ tapSide }

// adoptedMacvtap is a macvtap that libvirt has made. Libvirt removes it.
type adoptedMacvtap struct{ namedMacvtap }

// Expect clears the way for a device that libvirt is about to make: the bridge or parent device of the
// Spec is there, and no device has its name. What a former start of the guest has left is removed. One
// of that name is an error that Is nic.ErrExist and tells whose it is.
func (m *Manager) Expect(ctx context.Context, spec nic.Spec) error {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return err
	}
	return explainPrepare(spec, m.expect(ctx, h))
}

func (m *Manager) expect(ctx context.Context, h *half) error {
	former, err := m.unstarted(ctx, h.spec)
	if err != nil {
		return err
	}
	if former != nil {
		if err := m.run(ctx, []step.Step{m.deleteFormer(former)}); err != nil {
			return err
		}
	}
	if h.spec.Lower != nil {
		if err := m.freeNode(); err != nil {
			return step.WithStage(nic.ErrLink, err)
		}
	}
	if h.spec.Device == "" { // libvirt finds a name
		return nil
	}
	l, err := m.nl.Link(h.spec.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	return fmt.Errorf("%w: interface %s, %s (remove <target dev='%s'/> from the interface of one of the two, and libvirt finds a name: virsh edit %s)",
		nic.ErrExist, l.Name, ownerText(l), h.spec.Device, h.spec.VM)
}

// Adopt makes a device that libvirt has made for a guest, and that the Spec names as its Device, the NIC
// of the Spec: it puts a tap on its bridge, and gives a macvtap what libvirt has no words for. Its alias
// says from then on that it is the NIC's. One that was adopted is left as it is. One of the processes
// makers must hold it. That there is no such device Is fs.ErrNotExist; one that is not libvirt's for that
// MAC is an error that Is nic.ErrExist.
func (m *Manager) Adopt(ctx context.Context, spec nic.Spec, makers ...int) (Result, error) {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return Result{}, err
	}
	res, err := m.adopt(ctx, h, makers)
	return res, explainPrepare(spec, err)
}

func (m *Manager) adopt(ctx context.Context, h *half, makers []int) (Result, error) {
	l, err := m.nl.Link(h.spec.Device)
	if err != nil {
		return Result{}, step.WithStage(nic.ErrLink, err)
	}
	if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == h.spec.VM && r.NIC == h.spec.NIC {
		return Result{}, nil
	}
	if err := h.side.(adoptedSide).take(l, makers); err != nil {
		return Result{}, err
	}
	if err := m.run(ctx, inStage(nic.ErrLink, h.hostSteps(0)...)); err != nil {
		return Result{}, err
	}
	return h.prepared()
}

// adoption decides all that Expect and Adopt need; it changes nothing.
func (m *Manager) adoption(ctx context.Context, spec nic.Spec) (*half, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	spec.Via = nic.ViaLibvirt
	h := m.half(spec, nic.PhaseStarting)
	h.side = &adoptedTap{tapSide{m: m, spec: spec}}
	if spec.Lower != nil {
		h.side = &adoptedMacvtap{namedMacvtap{lowerSide: lowerSide{m: m, spec: spec}}}
	}
	return h, explainPrepare(spec, m.planPrepare(ctx, h))
}

// take goes by whether the tap is held: its name decides which one libvirt has opened.
func (s *adoptedTap) take(l *rtnl.Link, _ []int) error {
	switch {
	case !isForeign(l, "tun") || l.Tun == nil || !l.Tun.Attached || !bytes.Equal(l.MAC, stablemac.HostMAC(s.spec.MAC)):
		return fmt.Errorf("%w: interface %s, %s, and not the tap that libvirt makes for MAC %s", nic.ErrExist, l.Name, ownerText(l), s.spec.MAC)
	case l.Master != 0 && l.Master != s.br.Index:
		return fmt.Errorf("%w: somebody has made %s a port of %s", nic.ErrExist, l.Name, s.m.masterName(l))
	}
	s.link = l
	return nil
}

// steps begin with the tap down, which libvirt has set up: so it loses the addresses of the host's
// IPv6.
func (s *adoptedTap) steps(_ int, alias string, _ int) []step.Step {
	return append([]step.Step{{
		Name: "down",
		Text: fmt.Sprintf("RTM_SETLINK %s: down", s.name),
		Do:   func(context.Context) error { return s.m.nl.Set(s.link.Index, rtnl.Up(false)) },
	}}, s.portSteps(alias)...)
}

// take goes by the number of the node that libvirt has opened: by its path that may be another netns' macvtap's, as in devtmpfs
// all have theirs.
func (s *adoptedMacvtap) take(l *rtnl.Link, makers []int) error {
	kind := string(macvtap.Macvtap)
	if !isForeign(l, kind) || l.Lower != s.lower.Index || l.LowerNS >= 0 || !bytes.Equal(l.MAC, s.spec.MAC) {
		return fmt.Errorf("%w: interface %s, %s, and not the macvtap that libvirt makes on %s for MAC %s", nic.ErrExist, l.Name, ownerText(l), s.lower.Name, s.spec.MAC)
	}
	held := false
	for _, pid := range makers {
		fds, err := macvtap.QueuesOf(pid, s.m.ns, l)
		if err != nil {
			return fmt.Errorf("who holds %s: %w", l.Name, err)
		}
		held = held || len(fds) > 0
	}
	if !held {
		return fmt.Errorf("%w: libvirt has not opened %s, but %s in its place, of a macvtap in another netns (start the guest again; lsns -t net shows the namespaces)", nic.ErrInUse, l.Name, macvtap.NodeInTheWay(l))
	}
	s.link = l
	return nil
}

// steps set what libvirt has no words for. Libvirt sets the device up when the guest's processors start.
func (s *adoptedMacvtap) steps(_ int, alias string, _ int) []step.Step {
	text := fmt.Sprintf(", mtu %d, alias %q", s.lower.MTU, alias)
	list := append([]step.Step{s.settingsStep(text, rtnl.MTU(s.lower.MTU), rtnl.Alias(alias))}, s.altNameSteps()...)
	if s.spec.Lower.Mode != "source" {
		return list
	}
	return append(list, step.Step{
		Name: "sources",
		Text: fmt.Sprintf("RTM_NEWLINK %s: mode source, %d senders", s.name, len(s.spec.Lower.Sources)),
		Do: func(context.Context) error {
			return macvtap.SetSources(s.m.nl, s.link, s.spec.Lower.Sources)
		},
	})
}

// freeNode sees that the next macvtap that the kernel makes here, with an index of its choice, finds no node of its name in
// /dev: devtmpfs leaves that of a macvtap in another netns where it is, and libvirt would open it. Indices are used up by
// taps that go at once, as long as there is such a node in the way.
func (m *Manager) freeNode() error {
	for range indexTries {
		foreign, err := m.foreignNodes()
		if err != nil || len(foreign) == 0 {
			return err
		}
		tap, err := tun.CreateLike(m.ns, "vmnet-free%d")
		if err != nil {
			return err
		}
		l, err := m.nl.Link(tap.Name)
		if err := errors.Join(err, tap.Close()); err != nil {
			return err
		}
		if !slices.Contains(foreign, l.Index+1) {
			return nil
		}
	}
	return fmt.Errorf("%w: macvtaps in other netns have the nodes in /dev of the next %d that libvirt could make (find who makes them: lsns -t net)", nic.ErrExist, indexTries)
}

// foreignNodes are the indices of the nodes in /dev that belong to no macvtap of the Manager's netns.
func (m *Manager) foreignNodes() ([]int, error) {
	foreign, err := macvtap.Nodes()
	if err != nil || len(foreign) == 0 {
		return nil, err
	}
	for _, kind := range []macvtap.Kind{macvtap.Macvtap, macvtap.IPVtap} {
		own, err := m.nl.Links(string(kind), 0)
		if err != nil {
			return nil, err
		}
		for _, l := range own {
			foreign = slices.DeleteFunc(foreign, func(index int) bool { return index == l.Index })
		}
	}
	return foreign, nil
}
