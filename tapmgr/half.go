package tapmgr

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/internal/inventory"
	"vmnet/internal/stablemac"
	"vmnet/internal/step"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// half is the host's half of a NIC in the making, whoever the VMM is: a running QEMU that it is
// plugged into, or one that is yet to start.
type half struct {
	m    *Manager
	spec nic.Spec // with its defaults
	side hostSide

	anyModel bool // none was asked for: the machine decides

	// what plan decides
	record  nic.Record // while it is under way
	nic     qmp.NIC
	notices []string

	labelText string // of the label that the VMM gets; empty for none

	vhosts []*os.File // what the steps open
	label  *os.File
}

// half begins one; p is what the alias says from the first on.
func (m *Manager) half(spec nic.Spec, p nic.Phase) *half {
	h := &half{m: m, spec: spec, side: m.side(spec), record: nic.Record{
		VM: spec.VM, NIC: spec.NIC, MAC: spec.MAC, Model: spec.Model, Options: spec.OptionsHash(), Owner: m.Owner, Via: spec.Via, Phase: p,
	}}
	if bytes.Equal(spec.MAC, nic.DefaultMAC(spec.VM, spec.NIC)) {
		if err := stablemac.Check("/"); err != nil {
			h.notices = append(h.notices, fmt.Sprintf("MAC %s: %v; or choose one with --mac", spec.MAC, err))
		}
	}
	return h
}

// side is the host's side that a Spec asks for.
func (m *Manager) side(spec nic.Spec) hostSide {
	if spec.Via == nic.ViaLibvirt && spec.Lower != nil {
		return &namedMacvtap{lowerSide: lowerSide{m: m, spec: spec}}
	}
	if spec.Via == nic.ViaLibvirt {
		return &namedTap{tapSide: tapSide{m: m, spec: spec}}
	}
	switch {
	case spec.Switch != nil && m.by(spec) == nic.BySocket:
		return &socketSide{m: m, spec: spec}
	case spec.Switch != nil:
		return &switchTap{tapSide: tapSide{m: m, spec: spec}}
	case m.HelperPath != "":
		return &helperSide{tapSide: tapSide{m: m, spec: spec}}
	case spec.Lower != nil:
		return &lowerSide{m: m, spec: spec}
	}
	return &tapSide{m: m, spec: spec}
}

// plan decides what the steps need, once side.plan has been asked; it changes nothing.
func (h *half) plan(queues int) (err error) {
	r := &h.record
	r.Queues = queues
	if r.MTU, err = h.guestMTU(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if r.Vhost, err = h.useVhost(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if _, err := r.Encode(); err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	h.nic = qmp.NIC{
		ID: nic.DeviceID(r.NIC), Model: r.Model, MAC: r.MAC, HostMTU: r.MTU, Queues: make([]*os.File, queues),
		Options: maps.Clone(h.spec.DeviceOptions),
	}
	h.nic.Bus, h.nic.Addr = h.nic.Options["bus"], h.nic.Options["addr"]
	delete(h.nic.Options, "bus")
	delete(h.nic.Options, "addr")
	if r.Vhost && h.spec.Via != nic.ViaLibvirt { // libvirt opens it itself
		h.nic.Vhosts = make([]*os.File, queues)
	}
	if h.spec.Lower != nil {
		h.nic.Netns = make([]*os.File, 1)
	}
	if r.Type == nic.TypeSocket { // whose side has the label
		h.nic.Backend, h.nic.Label = qmp.Socket, make([]*os.File, 1)
		return nil
	}
	if err := h.planLabel(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if h.labelText != "" {
		h.nic.Label = make([]*os.File, 1)
	}
	return nil
}

// guestMTU is what the guest is told; 0 where it needs no telling. It is also the
// most that the guest can set later, so the usual one is not told.
func (h *half) guestMTU() (int, error) {
	most := h.side.maxMTU()
	mtu := cmp.Or(h.spec.MTU, most)
	switch {
	case mtu > most:
		return 0, fmt.Errorf("MTU %d: %s carries at most %d bytes", mtu, h.record.Source, most)
	case mtu == nic.EthernetMTU, !h.spec.IsVirtio():
		return 0, nil
	}
	return mtu, nil
}

// useVhost decides by opening the device once: only that proves it.
func (h *half) useVhost() (bool, error) {
	if h.spec.Vhost == nic.VhostOff || !h.spec.IsVirtio() || h.record.Type == nic.TypeSocket {
		return false, nil
	}
	f, err := vhost.Open()
	if err == nil {
		return true, f.Close()
	}
	if h.spec.Vhost == nic.VhostOn {
		return false, fmt.Errorf("vhost: %w", err)
	}
	h.notices = append(h.notices, fmt.Sprintf("vhost-net is not used: %v", err))
	return false, nil
}

// hostSteps make the device and open vhost-net.
func (h *half) hostSteps(pid int) []step.Step {
	alias, _ := h.record.Encode() // plan has tried it
	list := h.side.steps(pid, alias, h.record.Queues)
	for i := range list {
		do := list[i].Do
		list[i].Do = func(ctx context.Context) error {
			if err := do(ctx); err != nil {
				return err
			}
			h.take()
			return nil
		}
	}
	for i := range h.nic.Vhosts {
		list = append(list, h.vhostStep(i))
	}
	if h.labelText != "" {
		list = append([]step.Step{h.labelStep()}, list...)
	}
	return list
}

// take tells the hand-over which fds are open by now.
func (h *half) take() {
	copy(h.nic.Queues, h.side.queues())
	for i := range h.nic.Netns {
		h.nic.Netns[i] = h.side.netns()
	}
	for i := range h.nic.Label {
		h.nic.Label[i] = cmp.Or(h.label, h.side.label())
	}
}

func (h *half) vhostStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("vhost %d", i),
		Text: fmt.Sprintf("open %s: queue %d", vhost.Device, i),
		Do: func(context.Context) error {
			f, err := vhost.Open()
			if err != nil {
				return err
			}
			h.vhosts = append(h.vhosts, f)
			h.nic.Vhosts[i] = f
			return nil
		},
		Undo: func(context.Context) error { return h.closeVhosts() },
	}
}

func (h *half) closeVhosts() error {
	var errs []error
	for _, f := range h.vhosts {
		errs = append(errs, f.Close())
	}
	h.vhosts = nil
	return errors.Join(errs...)
}

// close closes our copies of all fds. Without a VMM's the device goes.
func (h *half) close() error {
	return errors.Join(h.side.close(), h.closeVhosts(), closeFile(&h.label))
}

// result describes the NIC that is there now. After a dry run there is none.
func (h *half) result(dev *inventory.Device, changed bool) nic.Result {
	res := nic.Result{Changed: changed, Notices: h.notices}
	if dev == nil {
		return res
	}
	res.NIC = dev.AsHeld()
	h.tellFindings(&res, dev)
	br := h.side.bridgeLink()
	if br == nil {
		return res
	}
	res.ForwardIn = bridge.ForwardsIn(dev.Link, br)
	if res.ForwardIn > 0 {
		res.Notices = append(res.Notices, fmt.Sprintf("%s is %s, forwards in about %.0f s (%s runs STP)", dev.Name, dev.Port.State, res.ForwardIn.Seconds(), br.Name))
	}
	return res
}

// tellFindings adds what of the NIC is not as it should be, and is not for us to mend.
func (h *half) tellFindings(res *nic.Result, dev *inventory.Device) {
	v, err := h.m.host.View(dev)
	if err != nil {
		res.Notices = append(res.Notices, fmt.Sprintf("%s was not compared with what it should be: %v", dev.Name, err))
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			res.Differences = append(res.Differences, f.Difference(dev))
			res.Notices = append(res.Notices, f.Notice())
		}
	}
	res.Notices = append(res.Notices, v.Advice()...)
}

// by decides what is between QEMU and the switch where the Spec leaves that open; this is the one place that does. A
// tap costs less for each byte, as its frames cross in super-frames.
func (m *Manager) by(spec nic.Spec) nic.By {
	switch {
	case spec.Switch.By != nic.ByAuto:
		return spec.Switch.By
	case spec.CheckSocket() != nil:
		return nic.ByTap
	case m.HelperPath != "" || vswitch.MayOpenPacket(m.host.NS) != nil:
		return nic.BySocket
	}
	return nic.ByTap
}
