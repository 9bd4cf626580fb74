package tapmgr

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// existing returns the NIC of that id if it is there as asked for. It notes what is
// there but not plugged, for the steps to take away.
func (a *attachment) existing(ctx context.Context) (*inventory.Device, error) {
	sw := ""
	if a.Spec.Switch != nil {
		sw = a.Record.Source
	}
	link, err := a.m.host.FindFor(ctx, a.vm.process(), a.Spec.VM, a.Spec.NIC, sw)
	if err != nil {
		return nil, err
	}
	if link != nil && link.Want.Via != a.Spec.Via {
		return nil, a.otherWay(ctx, link)
	}
	device, err := a.vm.has(ctx, a.Spec.NIC)
	if err != nil {
		return nil, step.WithStage(nic.ErrHandover, err)
	}
	if device && link == nil { // it may have been renamed
		if link, err = a.m.host.Find(ctx, nic.Target{VM: a.Spec.VM, PID: a.vm.process()}, a.Spec.NIC); err != nil {
			return nil, err
		}
	}
	if link != nil && device {
		held, err := a.m.host.HeldBy(link, a.vm.process())
		if err != nil {
			return nil, err
		}
		if !held {
			return nil, fmt.Errorf("%w: %s belongs to another process than %d, whose device %s was attached in another netns (two guests of one name?)", nic.ErrExist, link.Name, a.vm.process(), nic.DeviceID(a.Spec.NIC))
		}
	}
	switch {
	case link == nil && device:
		return nil, fmt.Errorf("%w: the guest has device %s, but there is no such link here: it was attached in another netns, or the guest has not let go of a former one (vmnet detach --vm %s --nic %s)", nic.ErrExist, nic.DeviceID(a.Spec.NIC), a.Spec.VM, a.Spec.NIC)
	case link == nil:
		return nil, nil
	case !device:
		a.left = link
		return nil, a.m.mayRelease(ctx, link, a.vm)
	}
	diff := differences(a.asked, link)
	switch {
	case (link.Deleted || link.IsSocket() && link.IsDisconnected()) && len(diff) == 0:
		a.dead = link
		return nil, nil
	case link.Want.Phase == nic.PhaseDetaching:
		return nil, fmt.Errorf("%w: it is being detached, but the guest has not let go of it yet (vmnet detach waits for it)", nic.ErrExist)
	case len(diff) > 0:
		return nil, fmt.Errorf("%w, but not as asked for: %s (detach it first, or use another --nic)", nic.ErrExist, strings.Join(diff, ", "))
	}
	return link, nil
}

// otherWay is about a NIC that was, or was about to be, handed over in another way than the one
// asked for. What nobody holds is replaced.
func (a *attachment) otherWay(ctx context.Context, link *inventory.Device) error {
	now, err := a.m.host.Reread(ctx, link)
	switch {
	case err != nil:
		return err
	case now == nil:
		return nil
	case len(now.Holders) > 0:
		return fmt.Errorf("%w, but not as asked for: via is %s, asked for %s (detach it first, or use another --nic)", nic.ErrExist, viaText(now.Want.Via), viaText(a.Spec.Via))
	}
	a.left = now
	return nil
}

func viaText(v nic.Via) string { return cmp.Or(string(v), "the guest's own monitor") }

// repaired returns the NIC that is there as asked for, and mends what reconcile would: what is not
// as it should be, and an alias that a crash has left.
func (a *attachment) repaired(ctx context.Context, dev *inventory.Device) (nic.Result, error) {
	if dev.HasLink() {
		fds, err := a.m.host.QueuesOf(dev, a.vm.process())
		if err != nil {
			return nic.Result{}, step.WithStage(nic.ErrLink, err)
		}
		dev.Holders = []nic.Holder{{PID: a.vm.process(), FDs: fds}}
	}
	v, err := a.m.host.View(dev)
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrLink, err)
	}
	var list []step.Step
	if dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseStarting {
		list = append(list, step.Step{
			Name:  "mark",
			Text:  fmt.Sprintf("alias of %s, which does not say yet that it is plugged", dev.Name),
			Stage: nic.ErrLink,
			Do:    func(ctx context.Context) error { return a.m.host.MarkPlugged(ctx, *dev) },
		})
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			continue
		}
		if !a.m.mayChange(dev) {
			return nic.Result{}, step.WithStage(nic.ErrLink, fmt.Errorf("%s: %s: want %s, found %s, and to mend that takes root (vmnet reconcile as root; or detach it, and attach it again)", dev.Name, f.What, cmp.Or(f.Want, "none"), cmp.Or(f.Found, "none")))
		}
		list = append(list, a.m.host.MendStep(v, f))
	}
	keep, err := a.keep(ctx, dev)
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrHandover, err)
	}
	list = append(list, keep...)
	if len(list) > 0 && !a.m.mayChange(dev) { // only its alias belies it
		res := a.Result(dev, false)
		res.Notices = append(res.Notices, fmt.Sprintf("a former attach of %s was cut short after the guest had it: it works, and is listed as %s (until vmnet reconcile as root; or detach it, and attach it again)", dev.Name, nic.Incomplete))
		return res, nil
	}
	if len(list) > 0 {
		if err := a.m.run(ctx, list); err != nil {
			return nic.Result{}, err
		}
	}
	now, err := a.m.host.Refresh(ctx, *dev)
	return a.Result(&now, len(list) > 0), err
}

// keep is what it takes for libvirt to have the NIC come back, as far as that is not so already.
func (a *attachment) keep(ctx context.Context, dev *inventory.Device) ([]step.Step, error) {
	d, ok := a.vm.(*domain)
	if !ok {
		return nil, nil
	}
	declare, store, err := d.keep(ctx, a.Spec, dev.Want, dev.Name, true)
	if d.store = store; len(store) > 0 {
		a.Notices = append(a.Notices, d.costOfNoHook(dev.Want)...)
	}
	return step.InStage(nic.ErrHandover, append(declare, store...)...), err
}

// mayChange tells whether the caller has the right to change a NIC that is there: with a helper for
// what takes more, only one by a socket.
func (m *Manager) mayChange(dev *inventory.Device) bool {
	return !m.HasHelper() || !dev.HasLink()
}

// differences returns where a NIC that is there is not what the Spec asks for. What
// the Spec leaves open matches anything.
func differences(s nic.Spec, dev *inventory.Device) []string {
	r := dev.Want
	var diff []string
	add := func(what string, is, want any) {
		if is != want {
			diff = append(diff, fmt.Sprintf("%s is %v, asked for %v", what, is, want))
		}
	}
	add("on a switch", r.Switch, s.Switch != nil)
	if l := s.Lower; l != nil {
		add("type", r.Type, string(l.Kind))
		add("lower", r.Source, l.Device)
		if l.Mode != "" {
			add("mode", r.Mode, l.Mode)
		}
		if l.Flag != "" {
			add("flag", macvlan.FlagName(dev.Link), l.Flag)
		}
		if l.RxFilter != "" {
			add("rx filter", r.RxFilter, l.RxFilter)
		}
	} else {
		if s.Switch == nil {
			add("type", r.Type, nic.TypeTap)
			add("bridge", r.Source, s.Bridge)
		} else {
			s.Switch.Differences(r, add)
		}
		if !s.Port.IsZero() {
			add("port setting", inventory.OrNothing(r.Port), inventory.OrNothing(s.Port.String()))
		}
		if dev.MasterName != "" && (r.Switch || dev.MasterName != r.Source) {
			diff = append(diff, fmt.Sprintf("somebody has made it a port of %s", dev.MasterName))
		}
	}
	if s.MAC != nil {
		add("MAC", r.MAC.String(), s.MAC.String())
	}
	if s.Model != "" {
		add("model", r.Model, s.Model)
	}
	if s.Queues != nic.QueuesAuto && s.Queues != 0 {
		add("queues", r.Queues, s.Queues)
	}
	if s.Vhost != nic.VhostAuto && s.Vhost != "" {
		add("vhost", nic.OnOff(r.Vhost), string(s.Vhost))
	}
	if s.MTU != 0 {
		add("MTU", r.GuestMTU(), s.MTU)
	}
	if h := s.OptionsHash(); h != "" && r.Options != h {
		diff = append(diff, "its further options differ")
	}
	return diff
}
