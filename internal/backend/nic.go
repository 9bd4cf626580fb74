package backend

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"vmnet/internal/endpoint"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/stablemac"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// NIC is the host's half of a NIC in the making, whoever the VMM is: a running QEMU that it is
// plugged into, or one that is yet to start.
type NIC struct {
	m      *Maker
	Spec   nic.Spec // with its defaults
	Device device

	AnyModel bool // none was asked for: the machine decides

	// what plan decides
	Record  nic.Record // while it is under way
	Nic     qmp.NIC
	Notices []string

	labelText string // of the label that the VMM gets; empty for none

	vhosts []*os.File // what the steps open
	label  *os.File
}

// New begins a NIC; p is what its alias says from the first on.
func (m *Maker) New(spec nic.Spec, p nic.Phase) *NIC {
	h := &NIC{m: m, Spec: spec, Device: m.side(spec), Record: nic.Record{
		VM: spec.VM, NIC: spec.NIC, MAC: spec.MAC, Model: spec.Model, Options: spec.OptionsHash(), Owner: m.Owner, Via: spec.Via, Phase: p,
	}}
	if bytes.Equal(spec.MAC, nic.DefaultMAC(spec.VM, spec.NIC)) {
		if err := stablemac.Check("/"); err != nil {
			h.Notices = append(h.Notices, fmt.Sprintf("MAC %s: %v; or choose one with --mac", spec.MAC, err))
		}
	}
	return h
}

// side is the host's side that a Spec asks for.
func (m *Maker) side(spec nic.Spec) device {
	if spec.Via == nic.ViaLibvirt && spec.Lower != nil {
		return &namedMacvtap{macvtapDevice: macvtapDevice{m: m, spec: spec}}
	}
	if spec.Via == nic.ViaLibvirt {
		return &namedTap{bridgeTap: bridgeTap{m: m, Spec: spec}}
	}
	switch {
	case spec.Switch != nil && m.by(spec) == nic.BySocket:
		return &switchSocket{m: m, spec: spec}
	case spec.Switch != nil:
		return &switchTap{bridgeTap: bridgeTap{m: m, Spec: spec}}
	case m.HelperPath != "":
		return &helperTap{bridgeTap: bridgeTap{m: m, Spec: spec}}
	case spec.Lower != nil:
		return &macvtapDevice{m: m, spec: spec}
	}
	return &bridgeTap{m: m, Spec: spec}
}

// Plan decides what the steps need, once side.plan has been asked; it changes nothing.
func (h *NIC) Plan(queues int) (err error) {
	r := &h.Record
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
	h.Nic = qmp.NIC{
		ID: nic.DeviceID(r.NIC), Model: r.Model, MAC: r.MAC, HostMTU: r.MTU, Queues: make([]*os.File, queues),
		Options: maps.Clone(h.Spec.DeviceOptions),
	}
	h.Nic.Bus, h.Nic.Addr = h.Nic.Options["bus"], h.Nic.Options["addr"]
	delete(h.Nic.Options, "bus")
	delete(h.Nic.Options, "addr")
	if r.Vhost && h.Spec.Via != nic.ViaLibvirt { // libvirt opens it itself
		h.Nic.Vhosts = make([]*os.File, queues)
	}
	if h.Spec.Lower != nil {
		h.Nic.Netns = make([]*os.File, 1)
	}
	if r.Type == nic.TypeSocket { // whose side has the label
		h.Nic.Backend, h.Nic.Label = qmp.Socket, make([]*os.File, 1)
		return nil
	}
	if err := h.planLabel(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if h.labelText != "" {
		h.Nic.Label = make([]*os.File, 1)
	}
	return nil
}

// guestMTU is what the guest is told; 0 where it needs no telling. It is also the
// most that the guest can set later, so the usual one is not told.
func (h *NIC) guestMTU() (int, error) {
	most := h.Device.maxMTU()
	mtu := cmp.Or(h.Spec.MTU, most)
	switch {
	case mtu > most:
		return 0, fmt.Errorf("MTU %d: %s carries at most %d bytes", mtu, h.Record.Source, most)
	case mtu == nic.EthernetMTU, !h.Spec.IsVirtio():
		return 0, nil
	}
	return mtu, nil
}

// useVhost decides by opening the device once: only that proves it.
func (h *NIC) useVhost() (bool, error) {
	if h.Spec.Vhost == nic.VhostOff || !h.Spec.IsVirtio() || h.Record.Type == nic.TypeSocket {
		return false, nil
	}
	f, err := vhost.Open()
	if err == nil {
		return true, f.Close()
	}
	if h.Spec.Vhost == nic.VhostOn {
		return false, fmt.Errorf("vhost: %w", err)
	}
	h.Notices = append(h.Notices, fmt.Sprintf("vhost-net is not used: %v", err))
	return false, nil
}

// HostSteps make the device and open vhost-net.
func (h *NIC) HostSteps(pid int) []step.Step {
	alias, _ := h.Record.Encode() // plan has tried it
	list := h.Device.steps(pid, alias, h.Record.Queues)
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
	for i := range h.Nic.Vhosts {
		list = append(list, h.vhostStep(i))
	}
	if h.labelText != "" {
		list = append([]step.Step{h.labelStep()}, list...)
	}
	return list
}

// take tells the hand-over which fds are open by now.
func (h *NIC) take() {
	copy(h.Nic.Queues, h.Device.queues())
	for i := range h.Nic.Netns {
		h.Nic.Netns[i] = h.Device.netns()
	}
	for i := range h.Nic.Label {
		h.Nic.Label[i] = cmp.Or(h.label, h.Device.label())
	}
}

func (h *NIC) vhostStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("vhost %d", i),
		Text: fmt.Sprintf("open %s: queue %d", vhost.Device, i),
		Do: func(context.Context) error {
			f, err := vhost.Open()
			if err != nil {
				return err
			}
			h.vhosts = append(h.vhosts, f)
			h.Nic.Vhosts[i] = f
			return nil
		},
		Undo: func(context.Context) error { return h.closeVhosts() },
	}
}

func (h *NIC) closeVhosts() error {
	var errs []error
	for _, f := range h.vhosts {
		errs = append(errs, f.Close())
	}
	h.vhosts = nil
	return errors.Join(errs...)
}

// Close closes our copies of all fds. Without a VMM's the device goes.
func (h *NIC) Close() error {
	return errors.Join(h.Device.Close(), h.closeVhosts(), closeFile(&h.label))
}

// Result describes the NIC that is there now. After a dry run there is none.
func (h *NIC) Result(dev *inventory.Device, changed bool) nic.Result {
	res := nic.Result{Changed: changed, Notices: h.Notices}
	if dev == nil {
		return res
	}
	res.NIC = dev.AsHeld()
	h.tellFindings(&res, dev)
	br := h.Device.bridgeLink()
	if br == nil {
		return res
	}
	res.ForwardIn = bridges.ForwardsIn(dev.Link, br)
	if res.ForwardIn > 0 {
		res.Notices = append(res.Notices, fmt.Sprintf("%s is %s, forwards in about %.0f s (%s runs STP)", dev.Name, dev.Port.State, res.ForwardIn.Seconds(), br.Name))
	}
	return res
}

// tellFindings adds what of the NIC is not as it should be, and is not for us to mend.
func (h *NIC) tellFindings(res *nic.Result, dev *inventory.Device) {
	v, err := h.m.View(dev)
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

// by decides what is between QEMU and the switch where the Spec leaves that open; this is the one
// place that does. A tap costs less for each byte, as its frames cross in super-frames.
func (m *Maker) by(spec nic.Spec) nic.By {
	switch {
	case spec.Switch.By != nic.ByAuto:
		return spec.Switch.By
	case spec.CheckSocket() != nil:
		return nic.ByTap
	case m.HelperPath != "" || endpoint.MayOpenPacket(m.NS) != nil:
		return nic.BySocket
	}
	return nic.ByTap
}
