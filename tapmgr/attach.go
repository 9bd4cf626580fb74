package tapmgr

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"vmnet/bridge"
	"vmnet/internal/rtnl"
	"vmnet/internal/step"
	"vmnet/qmp"
	"vmnet/vhost"
)

// Result is what Attach did.
type Result struct {
	NIC       NIC
	Changed   bool          // false where the NIC was there already, as asked for
	ForwardIn time.Duration // until the bridge port forwards; 0 where it does
	Notices   []string      // what a person should know, though it is no error
}

// Attach gives a running guest a NIC, or leaves nothing of it behind. The same
// Spec again is success without a change; another one under the same id is an
// error that Is ErrExist and tells the difference. What a crashed attach of the same
// NIC left is taken away first.
func (m *Manager) Attach(ctx context.Context, spec Spec) (Result, error) {
	if err := spec.Validate(); err != nil {
		return Result{}, err
	}
	asked := spec
	spec = spec.withDefaults()
	res, err := m.attach(ctx, spec, asked)
	if err != nil {
		return Result{}, fmt.Errorf("attach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) attach(ctx context.Context, spec, asked Spec) (Result, error) {
	a := &attachment{m: m, spec: spec, asked: asked, side: m.side(spec), record: record{
		VM: spec.VM, NIC: spec.NIC, MAC: spec.MAC, Model: spec.Model, Options: spec.optionsHash(), Phase: attaching,
	}}
	// What is wrong on this side is told without waiting for the guest.
	if err := a.side.plan(&a.record); err != nil {
		return Result{}, in(ErrLink, err)
	}
	if a.asked.Lower == nil {
		a.asked.Bridge = a.record.Source // it may have been named by an altname
	}
	var err error
	if a.vm, err = m.open(ctx, spec.Target); err != nil {
		return Result{}, err
	}
	defer a.vm.Close()
	there, err := a.existing(ctx)
	if err != nil {
		return Result{}, err
	}
	if there != nil {
		return a.repaired(ctx, there)
	}
	if err := a.plan(ctx); err != nil {
		return Result{}, err
	}
	if err := m.run(ctx, a.steps()); err != nil {
		return Result{}, err
	}
	return a.result(a.made, true), nil
}

// side is the host's side that a Spec asks for.
func (m *Manager) side(spec Spec) hostSide {
	if spec.Lower != nil {
		return &lowerSide{m: m, spec: spec}
	}
	return &tapSide{m: m, spec: spec}
}

// attachment is one attach under way, while its guest is locked.
type attachment struct {
	m     *Manager
	vm    *vm
	spec  Spec // with its defaults
	asked Spec // without
	side  hostSide

	// what plan decides
	record  record // while it is under way
	nic     qmp.NIC
	notices []string
	left    *ours // what a crash left under our id

	// what the steps make
	vhosts []*os.File
	made   *ours
}

// existing returns the NIC of that id if it is there as asked for. It notes what is
// there but not plugged, for the steps to take away.
func (a *attachment) existing(ctx context.Context) (*ours, error) {
	link, err := a.m.findFor(a.vm.pid, a.spec.VM, a.spec.NIC)
	if err != nil {
		return nil, err
	}
	device, err := a.vm.HasDevice(ctx, deviceID(a.spec.NIC))
	if err != nil {
		return nil, in(ErrHandover, err)
	}
	if device && link == nil { // it may have been renamed
		if link, err = a.m.find(a.spec.VM, a.spec.NIC); err != nil {
			return nil, err
		}
	}
	if link != nil && device {
		held, err := a.m.heldBy(link, a.vm.pid)
		if err != nil {
			return nil, err
		}
		if !held {
			return nil, fmt.Errorf("%w: %s belongs to another process than %d, whose device %s was attached in another netns (two guests of one name?)", ErrExist, link.Name, a.vm.pid, deviceID(a.spec.NIC))
		}
	}
	switch {
	case link == nil && device:
		return nil, fmt.Errorf("%w: the guest has device %s, but there is no such link here: it was attached in another netns, or the guest has not let go of a former one (vmnet detach --vm %s --nic %s)", ErrExist, deviceID(a.spec.NIC), a.spec.VM, a.spec.NIC)
	case link == nil:
		return nil, nil
	case !device:
		a.left = link
		return nil, a.m.mayRelease(link, a.vm.pid)
	case link.want.Phase == detaching:
		return nil, fmt.Errorf("%w: it is being detached, but the guest has not let go of it yet (vmnet detach waits for it)", ErrExist)
	}
	if diff := a.asked.differences(*link); len(diff) > 0 {
		return nil, fmt.Errorf("%w, but not as asked for: %s (detach it first, or use another --nic)", ErrExist, strings.Join(diff, ", "))
	}
	return link, nil
}

// repaired returns the NIC that is there as asked for, and puts right what is not as
// it should be: a port without a master, an alias that a crash has left.
func (a *attachment) repaired(ctx context.Context, o *ours) (Result, error) {
	var list []step.Step
	if tap, ok := a.side.(*tapSide); ok && o.Master == 0 {
		list = append(list, step.Step{
			Name: "port",
			Text: fmt.Sprintf("RTM_SETLINK %s: mtu %d, master %s, up", o.Name, tap.br.MTU, tap.br.Name),
			Do:   func(context.Context) error { return in(ErrLink, a.m.putBack(o, tap.br)) },
		})
	}
	if o.want.Phase == attaching {
		list = append(list, step.Step{
			Name: "mark",
			Text: fmt.Sprintf("RTM_SETLINK %s: alias, which does not say yet that it is plugged", o.Name),
			Do:   func(context.Context) error { return in(ErrLink, a.m.markPlugged(*o)) },
		})
	}
	if len(list) > 0 {
		if err := a.m.run(ctx, list); err != nil {
			return Result{}, err
		}
	}
	now, err := a.m.again(*o)
	return a.result(&now, len(list) > 0), err
}

// differences tells where a NIC that is there is not what the Spec asks for. What
// the Spec leaves open matches anything.
func (s Spec) differences(o ours) []string {
	r := o.want
	var diff []string
	add := func(what string, is, want any) {
		if is != want {
			diff = append(diff, fmt.Sprintf("%s is %v, asked for %v", what, is, want))
		}
	}
	if l := s.Lower; l != nil {
		add("type", r.Type, string(l.Kind))
		add("lower", r.Source, l.Device)
		if l.Mode != "" {
			add("mode", r.Mode, l.Mode)
		}
		if l.RxFilter != "" {
			add("rx filter", r.RxFilter, l.RxFilter)
		}
	} else {
		add("type", r.Type, TypeTap)
		add("bridge", r.Source, s.Bridge)
		if !s.Port.IsZero() {
			add("port setting", r.Port, s.Port.String())
		}
		if o.master != "" && o.master != r.Source {
			diff = append(diff, fmt.Sprintf("somebody has made it a port of %s", o.master))
		}
	}
	if s.MAC != nil {
		add("MAC", r.MAC.String(), s.MAC.String())
	}
	if s.Model != "" {
		add("model", r.Model, s.Model)
	}
	if s.Queues != QueuesAuto && s.Queues != 0 {
		add("queues", r.Queues, s.Queues)
	}
	if s.Vhost != VhostAuto && s.Vhost != "" {
		add("vhost", onOff(r.Vhost), string(s.Vhost))
	}
	if s.MTU != 0 {
		add("MTU", r.guestMTU(), s.MTU)
	}
	if h := s.optionsHash(); h != "" && r.Options != h {
		diff = append(diff, "its further options differ")
	}
	return diff
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// ethernetMTU is what a guest assumes that is told nothing.
const ethernetMTU = 1500

func (r record) guestMTU() int {
	if r.MTU == 0 {
		return ethernetMTU
	}
	return r.MTU
}

// plan decides everything that the steps need; it changes nothing.
func (a *attachment) plan(ctx context.Context) (err error) {
	r := &a.record
	if r.Queues, err = a.queues(ctx); err != nil {
		return err
	}
	if r.MTU, err = a.guestMTU(); err != nil {
		return in(ErrLink, err)
	}
	if r.Vhost, err = a.useVhost(); err != nil {
		return in(ErrLink, err)
	}
	if _, err := r.encode(); err != nil {
		return in(ErrInvalid, err)
	}
	a.nic = qmp.NIC{
		ID: deviceID(r.NIC), Model: r.Model, MAC: r.MAC, HostMTU: r.MTU, Queues: make([]*os.File, r.Queues),
	}
	if r.Vhost {
		a.nic.Vhosts = make([]*os.File, r.Queues)
	}
	if a.spec.Lower != nil {
		a.nic.Netns = make([]*os.File, 1)
	}
	if err := a.place(ctx); err != nil {
		return err
	}
	a.nic, err = a.vm.TypeOptions(ctx, a.nic)
	return in(ErrHandover, err)
}

// place finds where the device can be plugged, unless options say so.
func (a *attachment) place(ctx context.Context) error {
	a.nic.Options = maps.Clone(a.spec.DeviceOptions)
	a.nic.Bus, a.nic.Addr = a.nic.Options["bus"], a.nic.Options["addr"]
	delete(a.nic.Options, "bus")
	delete(a.nic.Options, "addr")
	if a.nic.Bus != "" {
		return nil
	}
	port, err := a.vm.FreePort(ctx)
	if err != nil {
		return in(ErrHandover, err)
	}
	a.nic.Bus = port.Bus
	if a.nic.Addr == "" {
		a.nic.Addr = port.Addr
	}
	return nil
}

func (a *attachment) queues(ctx context.Context) (int, error) {
	if a.spec.Queues != QueuesAuto {
		return a.spec.Queues, nil
	}
	if !a.spec.virtio() {
		return 1, nil
	}
	cpus, err := a.vm.CPUs(ctx)
	if err != nil {
		return 0, in(ErrHandover, err)
	}
	return max(1, min(cpus, MaxAutoQueues)), nil
}

// guestMTU is what the guest is told; 0 where it needs no telling. It is also the
// most that the guest can set later, so the usual one is not told.
func (a *attachment) guestMTU() (int, error) {
	most := a.side.maxMTU()
	mtu := cmp.Or(a.spec.MTU, most)
	switch {
	case mtu > most:
		return 0, fmt.Errorf("MTU %d: %s carries at most %d bytes", mtu, a.record.Source, most)
	case mtu == ethernetMTU, !a.spec.virtio():
		return 0, nil
	}
	return mtu, nil
}

// useVhost decides by opening the device once: only that proves it.
func (a *attachment) useVhost() (bool, error) {
	if a.spec.Vhost == VhostOff || !a.spec.virtio() {
		return false, nil
	}
	f, err := vhost.Open()
	if err == nil {
		return true, f.Close()
	}
	if a.spec.Vhost == VhostOn {
		return false, fmt.Errorf("vhost: %w", err)
	}
	a.notices = append(a.notices, fmt.Sprintf("vhost-net is not used: %v", err))
	return false, nil
}

// result describes the NIC that is there now. After a dry run there is none.
func (a *attachment) result(o *ours, changed bool) Result {
	res := Result{Changed: changed, Notices: a.notices}
	if o == nil {
		return res
	}
	res.NIC = a.m.describe(*o)
	tap, ok := a.side.(*tapSide)
	if !ok {
		return res
	}
	if !tap.br.Up {
		res.Notices = append(res.Notices, fmt.Sprintf("bridge %s is down, nothing passes it (ip link set %s up)", tap.br.Name, tap.br.Name))
	}
	res.ForwardIn = bridge.ForwardsIn(o.Link, tap.br)
	if res.ForwardIn > 0 {
		res.Notices = append(res.Notices, fmt.Sprintf("%s is %s, forwards in about %.0f s (%s runs STP)", o.Name, o.Port.State, res.ForwardIn.Seconds(), tap.br.Name))
	}
	return res
}

// WaitForwarding waits until the NIC's bridge port forwards. What is on no bridge does so at once.
func (m *Manager) WaitForwarding(ctx context.Context, nic NIC) error {
	if nic.Type != TypeTap {
		return nil
	}
	for {
		l, err := m.nl.Link(nic.Interface)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", nic.Interface, err)
		}
		if l.Port != nil && l.Port.State == rtnl.Forwarding {
			return nil
		}
		if l.Port == nil {
			return fmt.Errorf("wait for %s: it is on no bridge any more", nic.Interface)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %s: %w", nic.Interface, l.Port.State, context.Cause(ctx))
		case <-time.After(20 * pollEvery):
		}
	}
}

// inStage makes the errors of all steps Is the stage.
func inStage(stage error, steps ...step.Step) []step.Step {
	for i := range steps {
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error { return in(stage, do(ctx)) }
	}
	return steps
}
