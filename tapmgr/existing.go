package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"vmnet/bridge/portrate"
	"vmnet/internal/change"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/ovsdb"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A verdict is what an attach does about a NIC of the same id.
type verdict int

const (
	none         verdict = iota // there is none: attach it
	asRequested                 // it is there as requested: restore its settings
	leftover                    // its device is there and is not plugged: remove that first
	disconnected                // it is plugged and has lost its device or switch: replace it
)

// existing is a NIC of the same id, and what to do about it.
type existing struct {
	verdict verdict
	dev     *inventory.Device // nil for none
}

// existing finds a NIC of the same id. It is an error that matches nic.ErrExist if that is not as
// requested.
func (a *attachment) existing(ctx context.Context) (existing, error) {
	sw := ""
	if a.Spec.Switch != nil {
		sw = a.Record.Source
	}
	dev, err := a.m.host.FindFor(ctx, a.guest.PID(), a.Spec.VM, a.Spec.NIC, sw)
	if err != nil {
		return existing{}, err
	}
	if dev != nil && dev.Want.Via != a.Spec.Via {
		return a.otherVia(ctx, dev)
	}
	plugged, err := a.guest.Has(ctx, a.Spec.NIC)
	if err != nil {
		return existing{}, step.WithStage(nic.ErrHandover, err)
	}
	if plugged && dev == nil { // its link may have been renamed
		if dev, err = a.m.host.Find(ctx, nic.Target{VM: a.Spec.VM, PID: a.guest.PID()}, a.Spec.NIC); err != nil {
			return existing{}, err
		}
	}
	held := false
	if dev != nil && plugged {
		if held, err = a.m.host.HeldBy(dev, a.guest.PID()); err != nil {
			return existing{}, err
		}
	}
	e, err := judge(a.requested, dev, plugged, held, a.guest.PID())
	if e.verdict == leftover {
		err = a.m.checkReleasable(ctx, dev, a.guest)
	}
	return e, err
}

// judge decides about what there is of a NIC: its host interface, whether its device is plugged
// into the guest, and whether the guest's process pid holds the host interface.
func judge(requested nic.Spec, dev *inventory.Device, plugged, held bool, pid int) (existing, error) {
	id := requested.NIC
	switch {
	case dev == nil && plugged:
		return existing{},
			fmt.Errorf(
				"%w: the guest has device %s without a link here: it is another netns's, or the guest has not "+
					"released a former one (vmnet detach --vm %s --nic %s)",
				nic.ErrExist, nic.DeviceID(id), requested.VM, id)
	case dev == nil:
		return existing{}, nil
	case !plugged:
		return existing{leftover, dev}, nil
	case !held:
		return existing{},
			fmt.Errorf(
				"%w: %s belongs to another process than %d, whose device %s was attached in another netns (two "+
					"guests of one name?)",
				nic.ErrExist, dev.Name, pid, nic.DeviceID(id))
	}
	diff := differences(requested, dev)
	switch {
	case (dev.Deleted || !dev.MayRejoin() && dev.IsDisconnected()) && len(diff) == 0:
		return existing{disconnected, dev}, nil
	case dev.Want.Phase == nic.PhaseDetaching:
		return existing{},
			fmt.Errorf("%w: it is being detached, but the guest has not released it yet (vmnet detach waits for it)",
				nic.ErrExist)
	case dev.Want.Prepared != requested.Prepared:
		return existing{}, preparedOrNot(dev, requested)
	case len(diff) > 0:
		cure := "detach it first, or use another --nic"
		if set := change.Command(dev.Want, requested); set != "" {
			cure = set
		}
		return existing{}, fmt.Errorf("%w, but not as asked for: %s (%s)", nic.ErrExist, strings.Join(diff, ", "), cure)
	}
	return existing{asRequested, dev}, nil
}

// preparedOrNot returns why an attach of a prepared NIC, or a prepare of an attached one, is
// refused.
func preparedOrNot(dev *inventory.Device, requested nic.Spec) error {
	if requested.Prepared {
		return fmt.Errorf("%w, and is not prepared: it was attached, or committed (detach it first)",
			nic.ErrExist)
	}
	return fmt.Errorf("%w, prepared: it is down until vmnet commit --vm %s --nic %s (vmnet abort removes it)",
		nic.ErrExist, requested.VM, requested.NIC)
}

// otherVia is about a NIC that was, or was about to be, handed over in another way than the
// requested one. A NIC that nobody holds is replaced.
func (a *attachment) otherVia(ctx context.Context, dev *inventory.Device) (existing, error) {
	now, err := a.m.host.Reread(ctx, dev)
	switch {
	case err != nil || now == nil:
		return existing{}, err
	case len(now.Holders) > 0:
		return existing{},
			fmt.Errorf("%w, but not as asked for: via is %s, asked for %s (detach it first, or use another --nic)",
				nic.ErrExist, viaText(now.Want.Via), viaText(a.Spec.Via))
	}
	return existing{leftover, now}, nil
}

func viaText(v nic.Via) string { return cmp.Or(string(v), "the guest's own monitor") }

// repaired returns the NIC that is there as asked for, and mends what reconcile would: what is not
// as it should be, and an alias that a crash has left.
func (a *attachment) repaired(ctx context.Context, dev *inventory.Device) (nic.Result, error) {
	if dev.HasLink() {
		fds, err := a.m.host.QueuesOf(dev, a.guest.PID())
		if err != nil {
			return nic.Result{}, step.WithStage(nic.ErrLink, err)
		}
		dev.Holders = []nic.Holder{{PID: a.guest.PID(), FDs: fds}}
	}
	if change.IsUnfinished(dev) {
		if err := change.Finish(ctx, a.m.host, a.guest, dev); err != nil {
			return nic.Result{}, err
		}
		now, err := a.m.host.Refresh(ctx, *dev)
		return a.Result(&now, true), err
	}
	v, err := a.m.host.View(dev)
	if err != nil && a.m.HasHelper() && dev.OVS.Err != nil && errors.Is(err, fs.ErrPermission) {
		a.Notices, err = append(a.Notices, err.Error()), nil // only the helper may ask the database
	}
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrLink, err)
	}
	var list []step.Step
	if dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseStarting {
		list = append(list, step.Step{
			Name:  "mark",
			Text:  fmt.Sprintf("alias of %s, which does not say yet that it is plugged", dev.Name),
			Stage: nic.ErrLink,
			Do:    func(ctx context.Context) error { return a.m.markPlugged(ctx, a.guest, *dev) },
		})
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			continue
		}
		if !a.m.hasPrivilege(dev) {
			return nic.Result{},
				step.WithStage(nic.ErrLink,
					fmt.Errorf(
						"%s: %s: want %s, found %s, and to mend that takes root (vmnet reconcile as root; or detach it, "+
							"and attach it again)",
						dev.Name, f.What, cmp.Or(f.Want, "none"), cmp.Or(f.Found, "none")))
		}
		list = append(list, a.m.host.MendStep(v, f))
	}
	keep, err := a.keepSteps(ctx, dev)
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrHandover, err)
	}
	list = append(list, keep...)
	if len(list) > 0 && !a.m.hasPrivilege(dev) { // only its alias belies it
		res := a.Result(dev, false)
		res.Notices = append(res.Notices,
			fmt.Sprintf(
				"a former attach of %s was cut short after the guest had it: it works, and is listed as %s (until "+
					"vmnet reconcile as root; or detach it, and attach it again)",
				dev.Name, nic.Incomplete))
		return res, nil
	}
	if len(list) > 0 {
		if err := a.m.Run.Do(ctx, list); err != nil {
			return nic.Result{}, err
		}
	}
	now, err := a.m.host.Refresh(ctx, *dev)
	return a.Result(&now, len(list) > 0), err
}

// keepSteps have libvirt bring the NIC back when the guest starts again, as far as it would not.
func (a *attachment) keepSteps(ctx context.Context, dev *inventory.Device) ([]step.Step, error) {
	if a.guest.Domain == nil {
		return nil, nil
	}
	list, notices, err := a.guest.Domain.KeepPlugged(ctx, a.Spec, dev.Want, dev.Name)
	a.Notices = append(a.Notices, notices...)
	return step.InStage(nic.ErrHandover, list...), err
}

// differences returns how a NIC that is there differs from what the Spec asks for. What the Spec
// leaves open matches anything.
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
		switch {
		case s.Routed != "":
			add("type", r.Type, nic.TypeRouted)
			add("uplink", r.Source, s.Routed)
		case s.Switch == nil:
			if r.Type != nic.TypeOVS {
				add("type", r.Type, nic.TypeTap)
			}
			add("bridge", r.Source, s.Source())
			if s.Network != "" {
				add("network", cmp.Or(r.Network, "none"), s.Network)
			}
		default:
			s.Switch.Differences(r, add)
		}
		if !s.Port.IsZero() {
			add("port setting", inventory.OrNothing(r.Port), inventory.OrNothing(s.Port.String()))
		}
		onBridge := r.Type == nic.TypeTap && !r.Switch || r.Type == nic.TypeOVS
		if dev.MasterName != "" && (!onBridge || dev.MasterName != r.Source) {
			diff = append(diff, fmt.Sprintf("somebody has made it a port of %s", dev.MasterName))
		}
	}
	if s.LinkDown {
		add("link", nic.UpDown(!r.LinkDown), nic.UpDown(false))
	}
	if s.IfaceID != "" {
		add("iface-id", r.OVSIfaceID(), s.IfaceID)
	}
	if s.OVSDB != "" {
		add("ovsdb", cmp.Or(r.OVSDB, ovsdb.DefaultPath), s.OVSDB)
	}
	if len(s.IP) > 0 {
		add("IP", cmp.Or(nic.FormatIPs(r.IP), "none"), nic.FormatIPs(s.IP))
	}
	if !s.Security.IsZero() {
		add("port security", r.Security.String(), s.Security.String())
	}
	if !s.AllowIn.IsZero() {
		add("what may come in", cmp.Or(r.AllowIn.String(), "all"), s.AllowIn.String())
	}
	addRates(add, s.Rates, r.Rates)
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

// addRates adds how rates differ from those that were asked for.
func addRates(add func(what string, is, want any), asked, is portrate.Config) {
	if !asked.Up.IsZero() {
		add("rate from the guest", is.Up.String(), asked.Up.String())
	}
	if !asked.Down.IsZero() {
		add("rate to the guest", is.Down.String(), asked.Down.String())
	}
	if asked.Burst != 0 && asked.Burst != is.Burst {
		add("burst", is.Burst, asked.Burst)
	}
	if asked.Shape {
		add("shaping", nic.OnOff(is.Shape), nic.OnOff(true))
	}
}
