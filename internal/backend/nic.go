// Package backend makes the host's half of a NIC, its backend in QEMU's terms, and removes it: a
// tap on a bridge or a switch, a socket to a switch, a macvtap or ipvtap on its parent device. It
// knows nothing of the VMM that gets the files: a running one gets them through its monitor or
// through libvirt (package tapmgr), one that is about to start inherits them (Launch), and a
// privileged helper passes them to its caller (Serve).
//
// A NIC is planned first, as data, and then made by a list of steps. The steps add each file that
// they open for the VMM to the NIC's qmp.Files, from which the steps of package qmp pass it on.
package backend

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/roster"
	"vmnet/internal/policing"
	"vmnet/internal/stablemac"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// A Maker works in one network namespace. Its methods may be called concurrently.
type Maker struct {
	*inventory.Host
	Sharing

	// Run runs a list of steps; nil is step.Run alone.
	Run step.Runner
	// Owner is the uid for which a privileged helper works, as its links' aliases say; 0 for root.
	Owner int
	// HelperPath, if not empty, is the path of the privileged program that makes taps if the
	// caller may not: see Serve.
	HelperPath string
	// Networks says where the networks' files are.
	Networks roster.Files
}

// Open returns a Maker for ns, which stays the caller's and must stay open. Close the Maker.
func Open(ns *netns.NS) (*Maker, error) {
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	return &Maker{Host: &inventory.Host{NS: ns, NL: nl}}, nil
}

// In runs f with a Maker for a namespace that netns.Open knows by that name or path; empty for the
// current one.
func In(nameOrPath string, f func(*Maker) error) error {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	m, err := Open(ns)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// Close closes the netlink socket.
func (m *Maker) Close() { m.NL.Close() }

// NIC is the host's half of a NIC in the making, for a running VMM or for one that is yet to start.
// PlanInterface comes first, then PlanDevice, HostSteps and, once the steps have run, Verify.
type NIC struct {
	Spec     nic.Spec // with its defaults
	AnyModel bool     // the caller did not name a model: the machine decides
	Opener   int      // uid of the process that opens the interface by its name; 0 for root

	// What the plan decides. The caller may change Record and Device until HostSteps.
	Record    nic.Record // with the phase of the steps
	Interface Interface
	Device    qmp.NIC
	Notices   []string // for a person

	// Listen are the steps by which the VMM of a NIC of type vhost-user begins to listen. The
	// host's steps run them before they connect. The plan of the guest's part sets them.
	Listen []step.Step

	// Files are the open files for the VMM. The steps add to them, and Close closes them.
	Files qmp.Files

	m        *Maker
	host     hostInterface
	lifeline lifeline // for a switch
	made     making   // by HostSteps
}

// hostInterface makes the host interface of a NIC: there is one for each way in which a guest's
// frames can leave its VMM. It has the Files of its NIC, adds the queues and the netns to them when
// its steps open these, and closes these itself.
type hostInterface interface {
	// plan reads what the steps need and changes nothing. It sets in the record what the interface
	// decides, and the guest's MAC if that is not free.
	plan(ctx context.Context, r *nic.Record) (Interface, error)
	// steps make the interface ready for the guest, after plan. The interface has its record before
	// a file can leave this process.
	steps(w making) []step.Step
	// verify reads the interface back, once the VMM has it, and gives it its final record.
	verify(ctx context.Context, w making) (*inventory.Device, error)
	// close closes this process's files. The interface ends with them unless a VMM has copies.
	close() error
}

// Interface is what the plan says of a host interface.
type Interface struct {
	Name   string       // of the link, or of the port of a switch
	MaxMTU int          // in bytes
	Bridge *rtnl.Link   // the kernel's bridge that it becomes a port of; nil for none
	Join   *roster.Join // the network that it becomes one of; nil for none

	Notices []string // for a person
}

// making is what steps are made of.
type making struct {
	pid      int        // of the VMM; 0 if it is not known yet
	opener   int        // see NIC.Opener
	record   nic.Record // once the VMM has the NIC
	underWay string     // the record as text until then
	final    string     // and from then on
}

// New begins a NIC; p is the phase that its record has until the VMM has it.
func (m *Maker) New(spec nic.Spec, p nic.Phase) *NIC {
	h := &NIC{m: m, Spec: spec, Record: nic.Record{
		VM: spec.VM, NIC: spec.NIC, MAC: spec.MAC, Model: spec.Model, Options: spec.OptionsHash(),
		Network: spec.Network, IP: spec.OwnIPs(), IfaceID: spec.IfaceID, OVSDB: spec.OVSDB, Security: spec.Security,
		AllowIn: spec.AllowIn, Rates: spec.Rates, Owner: m.Owner, Via: spec.Via, LinkDown: spec.LinkDown,
		Prepared: spec.Prepared, Phase: p,
	}}
	h.host = m.interfaceFor(h)
	if bytes.Equal(spec.MAC, nic.DefaultMAC(spec.VM, spec.NIC)) {
		if err := stablemac.Check("/"); err != nil {
			h.Notices = append(h.Notices, fmt.Sprintf("MAC %s: %v; or choose one with --mac", spec.MAC, err))
		}
	}
	return h
}

// interfaceFor returns the kind of interface that the NIC's Spec asks for.
func (m *Maker) interfaceFor(h *NIC) hostInterface {
	spec := h.Spec
	tap := hostTap{m: m, spec: spec, files: &h.Files, staysDown: spec.Prepared}
	lower := macvtapInterface{m: m, spec: spec, files: &h.Files}
	switch {
	case spec.Via == nic.ViaLibvirt && spec.Lower != nil:
		return &namedMacvtap{macvtapInterface: lower}
	case spec.Via.ByName():
		tap.staysDown = spec.LinkDown || spec.Prepared
		return &namedTap{newPlacedTap(tap)}
	case spec.Switch != nil && m.switchEndpoint(spec) == nic.BySocket:
		return &switchSocket{m: m, spec: spec, files: &h.Files, lifeline: &h.lifeline}
	case spec.Switch != nil && spec.Switch.By == nic.ByVhostUser:
		return &sharedGuest{
			switchSocket: switchSocket{m: m, spec: spec, files: &h.Files, lifeline: &h.lifeline}, nic: h,
		}
	case spec.Switch != nil:
		return &switchTap{hostTap: tap}
	case m.HelperPath != "":
		return &helperTap{placedTap: newPlacedTap(tap)}
	case spec.Lower != nil:
		return &lower
	}
	placed := newPlacedTap(tap)
	return &placed
}

// PlanInterface plans the host interface. It reads what the steps need and changes nothing.
func (h *NIC) PlanInterface(ctx context.Context) (err error) {
	h.Interface, err = h.host.plan(ctx, &h.Record)
	h.Notices = append(h.Notices, h.Interface.Notices...)
	if err != nil || h.Spec.Switch != nil { // a switch polices its ports by itself
		return err
	}
	return policing.Check(h.m, h.Record, h.Interface.MaxMTU)
}

// PlanDevice plans the guest's half, with that many queues. It changes nothing.
func (h *NIC) PlanDevice(queues int) (err error) {
	r := &h.Record
	r.Queues = queues
	if r.MTU, err = h.guestMTU(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if r.Vhost, err = h.useVhost(); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if _, err := r.Encode(); err != nil { // before the guest is asked for anything
		return step.WithStage(nic.ErrInvalid, err)
	}
	byName := h.Spec.Via.ByName() // libvirt or the VMM opens the files itself
	h.Device = qmp.NIC{
		ID: nic.DeviceID(r.NIC), Model: r.Model, MAC: r.MAC, HostMTU: r.MTU, Options: maps.Clone(h.Spec.DeviceOptions),
		LinkDown: r.LinkDown, Queues: queues, Vhost: r.Vhost && !byName, Netns: h.Spec.Lower != nil && !byName,
	}
	h.Device.Bus, h.Device.Addr = h.Device.Options["bus"], h.Device.Options["addr"]
	delete(h.Device.Options, "bus")
	delete(h.Device.Options, "addr")
	switch r.Type {
	case nic.TypeSocket:
		h.Device.Backend = qmp.Socket
	case nic.TypeVhostUser:
		h.Device.Backend = qmp.VhostUser
	}
	label, err := h.label()
	h.Device.Label = label != ""
	return step.WithStage(nic.ErrLink, err)
}

// guestMTU returns the MTU that the guest sees; 0 if it needs none. It is also the largest that the
// guest can set later, so the usual one is left out.
func (h *NIC) guestMTU() (int, error) {
	most := h.Interface.MaxMTU
	mtu := cmp.Or(h.Spec.MTU, most)
	switch {
	case mtu > most:
		return 0, fmt.Errorf("MTU %d: %s carries at most %d bytes", mtu, h.Record.Source, most)
	case mtu == nic.EthernetMTU, !h.Spec.IsVirtio():
		return 0, nil
	}
	return mtu, nil
}

// useVhost decides by opening the device once: only that proves that it works.
func (h *NIC) useVhost() (bool, error) {
	if h.Spec.Vhost == nic.VhostOff || !h.Spec.IsVirtio() || h.Record.IsSocket() {
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

// hasLabel reports whether the VMM gets a label.
//
// The alias of a NIC's link is its record. But the link may be deleted under its guest: a macvtap
// goes with its parent device, and an administrator can delete a tap. The guest then keeps a dead
// NIC, whose VMM holds queues of no interface. So the VMM gets the record as a label as well. It
// gets none from a helper that an attach has started, since the attach gives it one; and none if
// libvirt, or the VMM by its name, opens the interface.
func (h *NIC) hasLabel() bool {
	r := h.Record
	fromHelper := h.m.Owner != 0 && r.Phase == nic.PhaseAttaching
	return r.IsSocket() || !r.Via.ByName() && !fromHelper
}

// label returns the label's text; empty if the VMM gets none, or if the names have no room in one.
func (h *NIC) label() (string, error) {
	if !h.hasLabel() {
		return "", nil
	}
	return h.m.LabelOf(h.Record)
}

// LabelOf returns the text of the label of a NIC that is plugged; empty if the names have no room
// in one.
func (m *Maker) LabelOf(r nic.Record) (string, error) {
	if r.IsSocket() { // which has no link
		r.Phase = nic.PhasePlugged
		return r.Encode()
	}
	own, err := m.NS.Inode()
	return r.Label(own), err
}

// HostSteps returns the steps that make the host interface, for the VMM that is process pid, and
// open vhost-net. The record is final from here on: its texts are written here.
func (h *NIC) HostSteps(pid int) ([]step.Step, error) {
	w := making{pid: pid, opener: h.Opener, record: h.Record}
	w.record.Phase = nic.PhasePlugged
	var err, finalErr error
	w.underWay, err = h.Record.Encode()
	w.final, finalErr = w.record.Encode()
	if err := errors.Join(err, finalErr); err != nil {
		return nil, step.WithStage(nic.ErrInvalid, err)
	}
	h.made = w
	var list []step.Step
	if h.Device.Label {
		label, err := h.label()
		if err != nil {
			return nil, step.WithStage(nic.ErrLink, err)
		}
		list = append(list, h.labelStep(label))
	}
	list = append(list, h.host.steps(w)...)
	if h.Device.Vhost {
		for i := range h.Device.Queues {
			list = append(list, h.vhostStep(i))
		}
	}
	return list, nil
}

func (h *NIC) labelStep(text string) step.Step {
	return step.Step{
		Name: "label",
		Text: fmt.Sprintf("memfd_create %q, for QEMU to hold", text),
		Do:   func(context.Context) (err error) { h.Files.Label, err = procfd.NewLabel(text); return err },
		Undo: func(context.Context) error { return closeFile(&h.Files.Label) },
	}
}

func (h *NIC) vhostStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("vhost %d", i),
		Text: fmt.Sprintf("open %s: queue %d", vhost.Device, i),
		Do: func(context.Context) error {
			f, err := vhost.Open()
			if err == nil {
				h.Files.Vhosts = append(h.Files.Vhosts, f)
			}
			return err
		},
		Undo: func(context.Context) error { return h.closeVhosts() },
	}
}

func (h *NIC) closeVhosts() error {
	var errs []error
	for _, f := range h.Files.Vhosts {
		errs = append(errs, f.Close())
	}
	h.Files.Vhosts = nil
	return errors.Join(errs...)
}

// FinalAlias returns the record that Verify sets, as text. HostSteps has been called.
func (h *NIC) FinalAlias() string { return h.made.final }

// Verify reads the interface back, once the VMM has it, and gives it its final record.
func (h *NIC) Verify(ctx context.Context) (*inventory.Device, error) {
	dev, err := h.host.verify(ctx, h.made)
	if err != nil {
		return nil, err
	}
	dev.Want = h.made.record
	return dev, nil
}

// Close closes this process's copies of all files. Without a VMM's the interface goes.
func (h *NIC) Close() error {
	return errors.Join(h.host.close(), h.closeVhosts(), closeFile(&h.Files.Label))
}

// Result describes the NIC that is there now. After a dry run there is none.
func (h *NIC) Result(dev *inventory.Device, changed bool) nic.Result {
	res := nic.Result{Changed: changed, Notices: h.Notices}
	if dev == nil {
		return res
	}
	res.NIC = dev.AsHeld()
	h.addFindings(&res, dev)
	br := h.Interface.Bridge
	if br == nil {
		return res
	}
	res.ForwardIn = bridges.ForwardsIn(dev.Link, br)
	if res.ForwardIn > 0 {
		res.Notices = append(res.Notices, fmt.Sprintf("%s is %s, forwards in about %.0f s (%s runs STP)",
			dev.Name, dev.Port.State, res.ForwardIn.Seconds(), br.Name))
	}
	return res
}

// addFindings adds the differences between the NIC and its record that vmnet does not mend.
func (h *NIC) addFindings(res *nic.Result, dev *inventory.Device) {
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
