package backend

import (
	"cmp"
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

// Launch is the host's half of the NICs of a VMM that is yet to start. The process that starts the
// VMM, or becomes it, passes the files on. They stay the Launch's.
type Launch struct {
	NICs  []Launched // as planned, until Make has made them
	m     *Maker
	nics  []*NIC
	steps []step.Step
}

// Launched is one NIC of a Launch.
type Launched struct {
	NIC    nic.NIC
	Device qmp.NIC    // what QEMU gets
	Files  *qmp.Files // for the VMM, once Make has opened them
	// Lifeline is a file that the VMM inherits along with the others but does not use; nil for
	// none. It stays the Launch's.
	Lifeline *os.File
	Notices  []string // for a person, though they are no errors
}

// Inherited returns the files of a NIC that the VMM inherits, as far as they are open.
func (l Launched) Inherited() []*os.File {
	files := l.Files.All()
	if l.Lifeline != nil {
		files = append(files, l.Lifeline)
	}
	return files
}

// PlanLaunch decides everything about the NICs of one guest, and changes nothing. The ids are those
// of Attach, so List, Show, Check and Detach treat the NICs like any other. QueuesAuto must have
// been decided. If there is a NIC of that name already, the error matches nic.ErrExist.
func (m *Maker) PlanLaunch(ctx context.Context, specs ...nic.Spec) (*Launch, error) {
	l := &Launch{m: m}
	for _, spec := range specs {
		h, err := m.planLaunch(ctx, spec)
		var steps []step.Step
		if err == nil {
			steps, err = h.HostSteps(os.Getpid())
		}
		if err != nil {
			return nil, fmt.Errorf("launch %s/%s: %w", spec.VM, spec.NIC, err)
		}
		if len(specs) > 1 {
			for i := range steps {
				steps[i].Name = spec.NIC + " " + steps[i].Name
			}
		}
		l.nics = append(l.nics, h)
		l.NICs = append(l.NICs, Launched{NIC: h.planned(), Device: h.Device, Files: &h.Files, Notices: h.Notices})
		l.steps = append(l.steps, step.InStage(nic.ErrLink, steps...)...)
	}
	return l, nil
}

// planLaunch decides everything about one NIC and changes nothing.
func (m *Maker) planLaunch(ctx context.Context, spec nic.Spec) (*NIC, error) {
	if err := cmp.Or(spec.Validate(), spec.CheckLinkUp(), spec.CheckPlace()); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	if spec.Queues == nic.QueuesAuto {
		return nil, step.WithStage(nic.ErrInvalid, errors.New("the number of queues is not decided"))
	}
	h := m.New(spec, nic.PhasePlugged)
	h.lifeline.wanted = true
	if err := h.PlanInterface(ctx); err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	if spec.Lower != nil { // it gets a netns of its own, in which its name is not taken
		there, err := m.Named(ctx, spec.VM, spec.NIC)
		if err != nil {
			return nil, err
		}
		// anybody can claim one without
		there = slices.DeleteFunc(there, func(dev inventory.Device) bool { return !dev.HasLink() })
		if len(there) > 0 {
			return nil,
				fmt.Errorf("%w: %s on %s (use another --nic)", nic.ErrExist, there[0].Name, there[0].Want.Source)
		}
	}
	if err := h.PlanDevice(spec.Queues); err != nil || h.Record.Type != nic.TypeVhostUser {
		return h, err
	}
	const hasKVM = true // package launch reads it of the command line
	return h, step.WithStage(nic.ErrLink, h.ShareWith(os.Getpid(), os.Getuid(), hasKVM))
}

// planned returns the NIC as it would be, without a state.
func (h *NIC) planned() nic.NIC {
	n := (&inventory.Device{Link: &rtnl.Link{Name: h.Interface.Name}, Want: h.Record}).AsHeld()
	n.State = ""
	return n
}

// Make makes all of the NICs, or leaves nothing behind. A dry run leaves them planned.
func (l *Launch) Make(ctx context.Context) error {
	if err := l.m.Run.Do(ctx, l.steps); err != nil {
		return fmt.Errorf("launch %s: %w", l.nics[0].Spec.VM, err)
	}
	if err := l.verify(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// verify reads back the interfaces that were made.
func (l *Launch) verify(ctx context.Context) error {
	for i, h := range l.nics {
		if len(h.Files.All()) == 0 { // a dry run
			continue
		}
		made, err := h.Verify(ctx)
		if err != nil {
			return fmt.Errorf("launch %s/%s: %w", h.Spec.VM, h.Spec.NIC, step.WithStage(nic.ErrLink, err))
		}
		res := h.Result(made, true)
		l.NICs[i].NIC, l.NICs[i].Notices, l.NICs[i].Lifeline = res.NIC, res.Notices, h.lifeline.write
	}
	return nil
}

// Close closes this process's files. The interfaces go with them unless a VMM has its own.
func (l *Launch) Close() error {
	var errs []error
	for _, h := range l.nics {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// Owned counts the NICs that a user has: see plaintap.CountOwned.
func (m *Maker) Owned(uid int) (int, error) { return plaintap.CountOwned(m.NL, uid, m.WithPrivilege) }

// LinkName returns the interface name of the link that has that name or altname.
func (m *Maker) LinkName(name string) (string, error) {
	l, err := m.NL.Link(name)
	if err != nil {
		return "", fmt.Errorf("interface %s: %w", name, err)
	}
	return l.Name, nil
}
