package tapmgr

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
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
	a.asked = a.asked.on(a.record.Source) // it may have been named by an altname
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
