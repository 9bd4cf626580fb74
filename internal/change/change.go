// Package change changes NICs that are plugged, without the guest's driver noticing. A change is
// one list of steps with undo. The NIC's record comes first, with the phase nic.PhaseChanging, so
// that a change which was cut short is known by it: reconcile, or the same change again, completes
// it. The steps between follow from the table by which check compares a NIC with its record
// (package inventory): what differs from the new record is mended. A property that is added there
// can be changed without code here.
package change

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/backend"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/network/roster"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A Plan is a change of a NIC whose guest is locked. Making it changes nothing.
type Plan struct {
	Changes []nic.Change
	Notices []string // for a person
	Steps   []step.Step

	m     *backend.Maker
	guest *guest.Guest
	dev   *inventory.Device
	from  nic.Record
	to    nic.Record
	join  []step.Step // the server of a network learns of the NIC
	store []step.Step // libvirt stores the NIC, or forgets it
}

// New plans to make the NIC dev as spec asks, which is complete: see [nic.Record.Spec]. Its error
// matches nic.ErrInvalid if the guest would have to notice the change.
func New(ctx context.Context, m *backend.Maker, g *guest.Guest, dev *inventory.Device, spec nic.Spec) (*Plan, error) {
	p := &Plan{m: m, guest: g, dev: dev, from: dev.Want}
	if spec.Switch != nil && isSwitch(p.from, spec.Switch.Name) {
		same := *spec.Switch
		same.Name, spec.Switch = p.from.Source, &same
	}
	p.Changes = nicflags.Differences(p.from.Spec(), spec)
	if err := Refuse(p.from, p.Changes); err != nil {
		return nil, step.WithStage(nic.ErrInvalid, err)
	}
	if err := spec.CheckSecurity(); err != nil {
		return nil, err
	}
	if p.from.Former != "" && p.changesSwitch(spec) {
		return nil, fmt.Errorf("%w: its move from switch %s to %s was cut short (vmnet reconcile first)",
			nic.ErrInUse, p.from.Former, p.from.Source)
	}
	if err := p.record(ctx, spec); err != nil {
		return nil, err
	}
	if err := p.persist(ctx, spec); err != nil {
		return nil, err
	}
	return p, p.plan(ctx)
}

// Commit plans to raise a NIC that was prepared, and to announce its guest. A commit that was cut
// short is known and completed as any other change.
func Commit(ctx context.Context, m *backend.Maker, g *guest.Guest, dev *inventory.Device) (*Plan, error) {
	p := &Plan{m: m, guest: g, dev: dev, from: dev.Want, to: dev.Want}
	p.to.Prepared = false
	return p, p.plan(ctx)
}

// Finish completes a change that was cut short: the NIC's record says what is wanted. It does
// nothing if no change is unfinished.
func Finish(ctx context.Context, m *backend.Maker, g *guest.Guest, dev *inventory.Device) error {
	if !IsUnfinished(dev) {
		return nil
	}
	p := &Plan{m: m, guest: g, dev: dev, from: dev.Want, to: dev.Want}
	if err := p.plan(ctx); err != nil {
		return err
	}
	return m.Run.Do(ctx, p.Steps)
}

// IsUnfinished reports whether a change of the NIC goes on, or was cut short.
func IsUnfinished(dev *inventory.Device) bool { return dev.Want.Phase == nic.PhaseChanging }

// record decides the new record.
func (p *Plan) record(ctx context.Context, spec nic.Spec) error {
	planned := spec
	planned.Via = "" // there is a device already
	h := p.m.New(planned.WithDefaults(), nic.PhaseChanging)
	if (isOnBridge(p.from) || p.from.Type == nic.TypeOVS) && len(p.Changes) > 0 || p.changesSwitch(spec) {
		if err := h.PlanInterface(ctx); err != nil {
			return step.WithStage(nic.ErrLink, err)
		}
		if h.Record.Type != p.from.Type {
			return step.WithStage(nic.ErrInvalid, fmt.Errorf("a NIC on %s does not move to %s, a bridge "+
				"of another kind (detach it, and attach it there)", p.from.Source, h.Record.Source))
		}
		if err := fits(p.from, h); err != nil {
			return step.WithStage(nic.ErrLink, err)
		}
		p.Notices = append(p.Notices, h.Notices...)
		if p.from.Network != "" && p.from.Network != spec.Network {
			g := roster.Guest{VM: p.from.VM, NIC: p.from.NIC, MAC: p.from.MAC, IP: p.from.IP}
			p.Notices = append(p.Notices, roster.Leave(p.m.Networks, p.from.Network, g)...)
		}
		p.join = h.Interface.Join.Steps(func() int { return p.dev.Index })
	} else {
		h.Record.Type, h.Record.Source, h.Record.At = p.from.Type, p.from.Source, p.from.At
		h.Record.Switch, h.Record.Port = p.from.Switch, spec.Port.String()
		if spec.Switch != nil {
			h.Record.Limits = spec.Switch.Limits()
		}
		if spec.Lower != nil {
			h.Record.Mode, h.Record.RxFilter = spec.Lower.Mode, spec.Lower.RxFilter
		}
	}
	r := h.Record
	r.MAC, r.Model, r.Queues, r.Vhost, r.MTU = p.from.MAC, p.from.Model, p.from.Queues, p.from.Vhost, p.from.MTU
	r.Options, r.Owner, r.Via, r.Netns = p.from.Options, p.from.Owner, p.from.Via, p.from.Netns
	r.LinkDown, r.Prepared, r.Phase = spec.LinkDown, false, nic.PhasePlugged
	p.to = r
	return nil
}

// persist decides whether libvirt stores the NIC from now on.
func (p *Plan) persist(ctx context.Context, spec nic.Spec) error {
	d := p.guest.Domain
	if d == nil {
		if spec.Persistent {
			return step.WithStage(nic.ErrInvalid, errors.New("libvirt cannot store a NIC that it does not know"))
		}
		return nil
	}
	steps, err := d.StoreSteps(ctx, spec, p.to, p.dev.Name)
	if err != nil {
		return step.WithStage(nic.ErrHandover, err)
	}
	if len(steps) > 0 {
		p.Changes = append(p.Changes, nic.Persistence(spec.Persistent))
		p.store = step.InStage(nic.ErrHandover, steps...)
	}
	return nil
}

// isSwitch reports whether the NIC is on the switch of that name, or of that socket's path.
func isSwitch(r nic.Record, name string) bool {
	is, err := control.Path(r.Source)
	asked, askedErr := control.Path(name)
	return r.Switch && err == nil && askedErr == nil && is == asked
}

// changesSwitch reports whether the NIC moves to another switch.
func (p *Plan) changesSwitch(spec nic.Spec) bool {
	return p.from.Switch && spec.Switch != nil && spec.Switch.Name != p.from.Source
}

func isOnBridge(r nic.Record) bool { return r.Type == nic.TypeTap && !r.Switch }

// fits returns an error if the guest may send longer frames than its new bridge carries: QEMU
// announces the MTU when the NIC is plugged.
func fits(from nic.Record, h *backend.NIC) error {
	told, most := from.GuestMTU(), h.Interface.MaxMTU
	if told <= most || h.Record.Source == from.Source && h.Record.At == from.At {
		return nil
	}
	return fmt.Errorf(
		"%s carries at most %d bytes, and the guest may send %d (ip link set %[1]s mtu %[3]d; or detach it, and attach it again)",
		h.Record.Source, most, told)
}

// plan decides the steps.
func (p *Plan) plan(ctx context.Context) error {
	wanted := p.underWay(p.from, p.to)
	final := p.to.AsPlugged()
	underWay, err := wanted.Encode()
	if err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	done, err := final.Encode()
	if err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	mends, err := p.mends(ctx, wanted)
	if err != nil {
		return err
	}
	labels, err := p.labelSteps(final)
	if err != nil {
		return step.WithStage(nic.ErrHandover, err)
	}
	told, err := p.guest.ChangeSteps(ctx, p.dev.Name, p.from, final)
	if err != nil {
		return step.WithStage(nic.ErrHandover, err)
	}
	if len(p.Changes) == 0 && len(mends) == 0 && !IsUnfinished(p.dev) && !p.from.Prepared {
		return nil
	}
	p.Steps = append(p.Steps, p.recordStep(underWay))
	p.Steps = append(p.Steps, step.InStage(nic.ErrHandover, told...)...)
	p.Steps = append(p.Steps, p.store...)
	p.Steps = append(p.Steps, step.InStage(nic.ErrLink, append(mends, p.join...)...)...)
	p.Steps = append(p.Steps, step.InStage(nic.ErrHandover, labels...)...)
	if p.moves() {
		p.Steps = append(p.Steps, p.announceStep())
	}
	p.Steps = append(p.Steps, p.verifyStep(wanted, done))
	return nil
}

// moves reports whether the guest's frames come out elsewhere.
func (p *Plan) moves() bool {
	return IsUnfinished(p.dev) || p.from.Prepared ||
		p.from.Source != p.to.Source || p.from.Former != "" || p.from.Port != p.to.Port ||
		p.from.LinkDown && !p.to.LinkDown || p.dev.MasterName != "" && p.dev.MasterName != p.to.Source
}

// as returns the NIC as it is now, compared with the record r.
func (p *Plan) as(ctx context.Context, r nic.Record) (*inventory.View, error) {
	now, err := p.m.Refresh(ctx, *p.dev)
	if err != nil {
		return nil, err
	}
	return p.view(ctx, now, r)
}

// view compares the NIC, as it was read, with the record r.
func (p *Plan) view(ctx context.Context, dev inventory.Device, r nic.Record) (*inventory.View, error) {
	other := dev.Want.Source != r.Source
	dev.Want = r
	if r.Switch && other {
		dev.SwitchPort = p.m.ReadSwitchPort(ctx, &dev)
	}
	return p.m.View(&dev)
}

// underWay returns the record to of a NIC while it changes from the record from.
func (p *Plan) underWay(from, to nic.Record) nic.Record {
	to.Phase = nic.PhaseChanging
	to.Former = ""
	switch {
	case !from.Switch:
	case from.Source != to.Source:
		to.Former = from.Source
	default:
		to.Former = from.Former
	}
	return to
}

// mends returns the steps that make the NIC as the record says.
func (p *Plan) mends(ctx context.Context, wanted nic.Record) ([]step.Step, error) {
	v, err := p.view(ctx, *p.dev, wanted)
	if err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	before := *p.dev
	old, err := p.m.View(&before)
	if err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	known := old.Compare()
	var list []step.Step
	for _, f := range v.Compare() {
		isOld := slices.ContainsFunc(known, func(o inventory.Finding) bool {
			return o.What == f.What && o.Want == f.Want
		})
		switch {
		case f.Fix.Kind != inventory.NotFixed:
			list = append(list, p.mendStep(wanted, f))
		case !isOld:
			return nil, step.WithStage(nic.ErrInvalid, fmt.Errorf("%s: %s", p.dev.Name, f))
		}
	}
	return list, nil
}

// mendStep mends one property, and its undo mends the property as the former record says.
func (p *Plan) mendStep(wanted nic.Record, f inventory.Finding) step.Step {
	former := p.underWay(p.to, p.from)
	return step.Step{
		Name: f.What, Text: f.Text,
		Do:   func(ctx context.Context) error { return p.mend(ctx, wanted, f.What) },
		Undo: func(ctx context.Context) error { return p.mend(ctx, former, f.What) },
	}
}

func (p *Plan) mend(ctx context.Context, r nic.Record, what string) error {
	v, err := p.as(ctx, r)
	if err != nil {
		return err
	}
	for _, f := range v.Compare() {
		if f.What == what && f.Fix.Kind != inventory.NotFixed {
			return p.m.MendStep(v, f).Do(ctx)
		}
	}
	return nil
}

// recordStep writes what is wanted.
func (p *Plan) recordStep(underWay string) step.Step {
	former, err := p.from.Encode()
	refused := false
	return step.Step{
		Name:  "record",
		Text:  fmt.Sprintf("alias of %s: %q", p.dev.Name, underWay),
		Stage: nic.ErrLink,
		Do: func(ctx context.Context) error {
			if err != nil {
				return err
			}
			err := p.m.SetAlias(ctx, p.dev, underWay)
			if refused = errors.Is(err, fs.ErrPermission); refused {
				err = fmt.Errorf("%w (to change a NIC needs CAP_NET_ADMIN: run it as root)", err)
			}
			return err
		},
		Undo: func(ctx context.Context) error {
			if refused {
				return nil
			}
			return p.m.SetAlias(ctx, p.dev, former)
		},
	}
}

// verifyStep reads back what should have changed, and only then says in the alias that it has.
func (p *Plan) verifyStep(wanted nic.Record, done string) step.Step {
	return step.Step{
		Name:  "verify",
		Text:  fmt.Sprintf("read the device back; set its alias %q", done),
		Stage: nic.ErrLink,
		Do: func(ctx context.Context) error {
			v, err := p.as(ctx, wanted)
			if err != nil {
				return err
			}
			for _, f := range v.Compare() {
				if f.Fix.Kind != inventory.NotFixed {
					return errors.New("somebody changed it meanwhile: " + f.String())
				}
			}
			if err := p.guest.Alive(); err != nil {
				return step.WithStage(nic.ErrHandover, err)
			}
			return p.m.SetAlias(ctx, p.dev, done)
		},
	}
}
