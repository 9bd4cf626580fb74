package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Launch is the host's side of the NICs of a VMM that is yet to be started: whoever starts it,
// or becomes it, passes the fds on. They stay the Launch's.
type Launch struct {
	NICs   []Launched // as planned, until Make has made them
	m      *Maker
	halves []*NIC
	steps  []step.Step
}

// Launched is one NIC of a Launch.
type Launched struct {
	NIC    nic.NIC
	Device qmp.NIC // what QEMU is to be given, with the fds once they are open
	// Lifeline is a file that whoever has the NIC's fds inherits along with them, without a use for
	// it; nil for none. It stays the Launch's.
	Lifeline *os.File
	Notices  []string // what a person should know, though it is no error
}

// PlanLaunch decides everything about the NICs of one guest, and changes nothing. The ids are those
// of Attach, so that afterwards List, Show, Check and Detach treat them like any other. QueuesAuto
// must have been decided. A NIC of that name that is there is an error that Is ErrExist.
func (m *Maker) PlanLaunch(ctx context.Context, specs ...nic.Spec) (*Launch, error) {
	l := &Launch{m: m}
	for _, spec := range specs {
		h, err := m.planLaunch(ctx, spec)
		if err != nil {
			return nil, fmt.Errorf("launch %s/%s: %w", spec.VM, spec.NIC, err)
		}
		l.halves = append(l.halves, h)
		l.NICs = append(l.NICs, Launched{NIC: h.planned(), Device: h.Nic, Notices: h.Notices})
		steps := h.HostSteps(os.Getpid())
		for i := range steps {
			if len(specs) > 1 {
				steps[i].Name = spec.NIC + " " + steps[i].Name
			}
		}
		l.steps = append(l.steps, step.InStage(nic.ErrLink, steps...)...)
	}
	return l, nil
}

// Make makes all of the NICs, or leaves nothing behind. A dry run leaves them planned.
func (l *Launch) Make(ctx context.Context) error {
	if err := l.m.run(ctx, l.steps); err != nil {
		return fmt.Errorf("launch %s: %w", l.halves[0].Spec.VM, err)
	}
	if err := l.look(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// planLaunch decides everything about one NIC and changes nothing.
func (m *Maker) planLaunch(ctx context.Context, spec nic.Spec) (*NIC, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	if spec.Queues == nic.QueuesAuto {
		return nil, step.WithStage(nic.ErrInvalid, errors.New("the number of queues is not decided"))
	}
	h := m.New(spec, nic.PhasePlugged)
	if s, ok := h.Device.(*switchSocket); ok {
		s.lifeline.wanted = true
	}
	if err := h.Device.Plan(ctx, &h.Record); err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	if spec.Lower != nil { // its name is taken in no netns that we could see
		there, err := m.Named(ctx, spec.VM, spec.NIC)
		if err != nil {
			return nil, err
		}
		there = slices.DeleteFunc(there, func(dev inventory.Device) bool { return !dev.HasLink() }) // anybody's word
		if len(there) > 0 {
			return nil, fmt.Errorf("%w: %s on %s (use another --nic)", nic.ErrExist, there[0].Name, there[0].Want.Source)
		}
	}
	return h, h.Plan(spec.Queues)
}

// look reads the devices back, as far as there are any.
func (l *Launch) look(ctx context.Context) error {
	for i, h := range l.halves {
		if h.Device.queues() == nil {
			continue
		}
		alias, _ := h.Record.Encode()
		made, err := h.Device.Verify(ctx, os.Getpid(), alias)
		if err != nil {
			return fmt.Errorf("launch %s/%s: %w", h.Spec.VM, h.Spec.NIC, step.WithStage(nic.ErrLink, err))
		}
		made.Want = h.Record
		res := h.Result(made, true)
		l.NICs[i] = Launched{NIC: res.NIC, Device: h.Nic, Notices: res.Notices}
		if s, ok := h.Device.(*switchSocket); ok {
			l.NICs[i].Lifeline = s.lifeline.write
		}
	}
	return nil
}

// planned is the NIC as it would be, without a state.
func (h *NIC) planned() nic.NIC {
	n := (&inventory.Device{Link: &rtnl.Link{Name: h.Device.InterfaceName()}, Want: h.Record}).AsHeld()
	n.State = ""
	return n
}

// Close closes our copies of all fds; the devices go with them unless a VMM has its own.
func (l *Launch) Close() error {
	var errs []error
	for _, h := range l.halves {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// Owned counts the NICs that a user has: see plaintap.CountOwned.
func (m *Maker) Owned(uid int) (int, error) { return plaintap.CountOwned(m.NL, uid, m.WithPrivilege) }

// LinkName is the interface name of a link that was named by that or by an altname.
func (m *Maker) LinkName(name string) (string, error) {
	l, err := m.NL.Link(name)
	if err != nil {
		return "", fmt.Errorf("interface %s: %w", name, err)
	}
	return l.Name, nil
}
