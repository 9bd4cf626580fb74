package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// adoptedDevice is a device that libvirt has made and holds.
type adoptedDevice interface {
	device
	// adopt has the steps work on that link. An error says why it is not one that libvirt has made
	// for the guest and put nowhere. makers are the processes of which one must hold it.
	adopt(l *rtnl.Link, makers []int) error
}

// adoptedTap is a tap that libvirt has made. It goes with the process that holds it.
type adoptedTap struct{ bridgeTap }

// adoptedMacvtap is a macvtap that libvirt has made. Libvirt removes it.
type adoptedMacvtap struct{ namedMacvtap }

// NewAdopted begins a NIC on a device that libvirt makes.
func (m *Maker) NewAdopted(spec nic.Spec, p nic.Phase) *NIC {
	h := m.New(spec, p)
	if spec.Lower != nil {
		h.Device = &adoptedMacvtap{namedMacvtap{macvtapDevice: macvtapDevice{m: m, spec: spec}}}
	} else {
		h.Device = &adoptedTap{bridgeTap{m: m, Spec: spec}}
	}
	return h
}

// FindAdopted finds the device that libvirt has made, by the name that the Spec of NewAdopted has.
// makers are the processes of which one must hold it. adopted reports that it is the NIC's already.
// That there is none Is fs.ErrNotExist; one that is not libvirt's for that MAC is an error that Is
// nic.ErrExist, and one that libvirt does not hold is an error that Is nic.ErrInUse.
func (h *NIC) FindAdopted(makers []int) (adopted bool, err error) {
	l, err := h.m.NL.Link(h.Spec.Device)
	if err != nil {
		return false, step.WithStage(nic.ErrLink, err)
	}
	if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == h.Spec.VM && r.NIC == h.Spec.NIC {
		return true, nil
	}
	return false, h.Device.(adoptedDevice).adopt(l, makers)
}

// adopt takes a tap that anybody holds: its name decides which one libvirt has opened.
func (s *adoptedTap) adopt(l *rtnl.Link, _ []int) error {
	switch {
	case !inventory.IsForeign(l, "tun") || l.Tun == nil || !l.Tun.Attached || !bytes.Equal(l.MAC, stablemac.HostMAC(s.Spec.MAC)):
		return fmt.Errorf("%w: interface %s, %s, and not the tap that libvirt makes for MAC %s", nic.ErrExist, l.Name, OwnerText(l), s.Spec.MAC)
	case l.Master != 0 && l.Master != s.br.Index:
		return fmt.Errorf("%w: somebody has made %s a port of %s", nic.ErrExist, l.Name, s.m.MasterName(l))
	}
	s.Link = l
	return nil
}

// steps begin with the tap down, which libvirt has set up: so it loses the addresses of the host's
// IPv6.
func (s *adoptedTap) steps(_ int, alias string, _ int) []step.Step {
	return append([]step.Step{{
		Name: "down",
		Text: fmt.Sprintf("RTM_SETLINK %s: down", s.name),
		Do:   func(context.Context) error { return s.m.NL.Set(s.Link.Index, rtnl.Up(false)) },
	}}, s.portSteps(alias)...)
}

// adopt goes by the number of the node that libvirt has opened: by its path that may be of another
// netns' macvtap, since in devtmpfs all have theirs.
func (s *adoptedMacvtap) adopt(l *rtnl.Link, makers []int) error {
	if !inventory.IsForeign(l, string(vtap.Macvtap)) || l.Lower != s.lower.Index || l.LowerNS >= 0 || !bytes.Equal(l.MAC, s.spec.MAC) {
		return fmt.Errorf("%w: interface %s, %s, and not the macvtap that libvirt makes on %s for MAC %s",
			nic.ErrExist, l.Name, OwnerText(l), s.lower.Name, s.spec.MAC)
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
		return fmt.Errorf("%w: libvirt has not opened %s, but %s in its place, of a macvtap in another netns (start the guest again; lsns -t net shows the namespaces)",
			nic.ErrInUse, l.Name, macvlan.NodeInTheWay(l))
	}
	s.link = l
	return nil
}

// steps set what libvirt has no words for. Libvirt sets the device up when the guest's processors
// start.
func (s *adoptedMacvtap) steps(_ int, alias string, _ int) []step.Step {
	more := fmt.Sprintf(", mtu %d, alias %q", s.lower.MTU, alias)
	list := append([]step.Step{s.settingsStep(more, rtnl.MTU(s.lower.MTU), rtnl.Alias(alias))}, s.altNameSteps()...)
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

// freeNode sees that the next macvtap that the kernel makes here, with an index of its choice,
// finds no node of its name in /dev: devtmpfs leaves that of a macvtap in another netns where it
// is, and libvirt would open it. Indices are used up by taps that go at once, as long as there is
// such a node in the way.
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
	return fmt.Errorf("%w: macvtaps in other netns have the nodes in /dev of the next %d that libvirt could make (find who makes them: lsns -t net)",
		nic.ErrExist, indexTries)
}

// foreignNodes are the indices of the nodes in /dev that belong to no macvtap of the Maker's netns.
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
