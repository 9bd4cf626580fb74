// Package declare gives guests the NICs that their files say (package guestfile): at once, or when
// their VMM opens its monitor. It changes NICs only by the verbs of package tapmgr, of which each
// is done as a whole or undone. What was cut off is done by the next Apply.
package declare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/change"
	"vmnet/internal/guestfile"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// Manager is the part of tapmgr.Manager that changes NICs.
type Manager interface {
	Records(context.Context, nic.Target) ([]tapmgr.Recorded, error)
	Arrived(context.Context, nic.Target) error
	Attach(context.Context, nic.Spec) (nic.Result, error)
	Set(context.Context, nic.Target, string, func(nic.Spec) (nic.Spec, error)) (nic.ChangeResult, error)
	Detach(context.Context, tapmgr.DetachSpec) (tapmgr.DetachResult, error)
}

// An Applier applies files. Its methods may be called at the same time for different guests.
type Applier struct {
	Manager Manager
	// Join, if not nil, completes what a NIC on a network asks for. It changes nothing else.
	Join func(*nic.Spec) error
	// Prepare, if not nil, is called before a NIC is attached.
	Prepare func(context.Context, nic.Spec) error
	// AttachWait and DetachWait bound how long one NIC takes.
	AttachWait, DetachWait time.Duration
	// DryRun says that the Manager runs no steps: Do has it plan them, and finds what it refuses.
	DryRun bool
	// look replaces qemu.Look in tests.
	look func() (qemu.Running, error)
}

// Plan is what makes a guest's NICs as its file says.
type Plan struct {
	VM      string
	Running bool // if not, there is nothing to do
	Changes []Change
	// Notices say why processes of that name are not taken for the guest.
	Notices []string

	target nic.Target
	there  []tapmgr.Recorded
	comes  bool           // it was started to wait for a guest from another QEMU
	self   string         // of the processes that may be the guest: differs for each start of it
	others []qemu.Process // that have its name and are not taken for it
}

// Change is one NIC's part of a Plan, and what came of it.
type Change struct {
	guestfile.Change
	Interface string   // of a NIC that is there
	Done      bool     // it was done now
	Notices   []string // of doing it
	Err       error    // why it cannot be done, or was not
}

// IsChange reports whether there is something to do.
func (c Change) IsChange() bool { return c.Action != guestfile.Keep }

// Plan compares a guest with its file, and changes nothing.
func (a *Applier) Plan(ctx context.Context, g *guestfile.Guest) (*Plan, error) {
	p, err := a.find(g)
	if err != nil || !p.Running {
		return p, err
	}
	if p.comes {
		err := within(ctx, a.AttachWait, func(ctx context.Context) error { return a.Manager.Arrived(ctx, p.target) })
		if err != nil {
			return p, fmt.Errorf("guest %s: %w", g.VM, err)
		}
	}
	if p.there, err = a.Manager.Records(ctx, p.target); err != nil {
		return p, err
	}
	var there []guestfile.There
	for _, r := range p.there {
		there = append(there, guestfile.There{
			Record: r.Record, State: r.State, Names: r.Names, Off: offText(r.Off), Stored: r.Stored,
		})
	}
	joined, err := a.join(g)
	if err != nil {
		return p, err
	}
	for _, c := range joined.Compare(there) {
		done := Change{Change: c}
		if i := p.index(c.NIC); i >= 0 {
			done.Interface = p.there[i].Interface
			if c.Action == guestfile.Set {
				done.Err = change.Refuse(p.there[i].Record, c.Differences)
			}
		}
		p.Changes = append(p.Changes, done)
	}
	return p, nil
}

func offText(off []nic.Difference) string {
	var all []string
	for _, d := range off {
		all = append(all, fmt.Sprintf("its %s is %s, not %s", d.What, cmp.Or(d.Found, "none"), cmp.Or(d.Want, "none")))
	}
	return strings.Join(all, ", ")
}

func (p *Plan) index(id string) int {
	return slices.IndexFunc(p.there, func(r tapmgr.Recorded) bool { return r.ID == id })
}

// join returns the guest with what its NICs on networks are to be.
func (a *Applier) join(g *guestfile.Guest) (*guestfile.Guest, error) {
	if a.Join == nil {
		return g, nil
	}
	joined := *g
	joined.NICs = slices.Clone(g.NICs)
	for i := range joined.NICs {
		s := &joined.NICs[i].Spec
		if s.Network == "" {
			continue
		}
		if err := a.Join(s); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", g.VM, s.NIC, err)
		}
	}
	return &joined, nil
}

// Apply makes a guest's NICs as its file says. A NIC that cannot be made so does not keep others
// from it: its error is in its Change, and in the error of Apply.
func (a *Applier) Apply(ctx context.Context, g *guestfile.Guest) (*Plan, error) {
	p, err := a.Plan(ctx, g)
	if err != nil {
		return p, err
	}
	return p, a.Do(ctx, p)
}

// Do makes what a Plan says.
func (a *Applier) Do(ctx context.Context, p *Plan) error {
	var errs []error
	for i := range p.Changes {
		c := &p.Changes[i]
		if !c.IsChange() {
			continue
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		if c.Err == nil {
			c.Err = a.do(ctx, p, c)
			c.Done = c.Done && !a.DryRun
		}
		if c.Err != nil {
			errs = append(errs, c.Err)
		}
	}
	return errors.Join(errs...)
}

func (a *Applier) do(ctx context.Context, p *Plan, c *Change) error {
	switch c.Action {
	case guestfile.Attach:
		return a.attach(ctx, p, c)
	case guestfile.Set:
		return a.set(ctx, p, c)
	}
	return a.detach(ctx, p, c)
}

func (a *Applier) attach(ctx context.Context, p *Plan, c *Change) error {
	if a.DryRun && (a.Prepare != nil && c.Spec.Switch != nil || p.has(guestfile.Detach)) {
		return nil // it needs what is not done: a network that runs, or what is detached first
	}
	spec := c.Spec
	spec.Target = p.target
	if a.Prepare != nil {
		if err := a.Prepare(ctx, spec); err != nil {
			return err
		}
	}
	return within(ctx, a.AttachWait, func(ctx context.Context) error {
		res, err := a.Manager.Attach(ctx, spec)
		c.Done, c.Interface, c.Notices = res.Changed, res.NIC.Interface, res.Notices
		return err
	})
}

func (p *Plan) has(action guestfile.Action) bool {
	return slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action == action })
}

func (a *Applier) set(ctx context.Context, p *Plan, c *Change) error {
	return within(ctx, a.AttachWait, func(ctx context.Context) error {
		res, err := a.Manager.Set(ctx, p.target, c.NIC, func(nic.Spec) (nic.Spec, error) { return c.Spec, nil })
		c.Done, c.Notices = res.Changed, res.Notices
		return err
	})
}

func (a *Applier) detach(ctx context.Context, p *Plan, c *Change) error {
	via := nic.Via("")
	if i := p.index(c.NIC); i >= 0 {
		via = p.there[i].Via
	}
	spec := tapmgr.DetachSpec{Target: p.target, NIC: c.NIC, Persistent: via == nic.ViaLibvirt}
	return within(ctx, a.DetachWait, func(ctx context.Context) error {
		res, err := a.Manager.Detach(ctx, spec)
		c.Done, c.Notices = res.Changed && err == nil, res.Notices
		return err
	})
}

func within(ctx context.Context, wait time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("timed out after %v", wait))
	defer cancel()
	return do(ctx)
}

// find finds the guest's VMM: that of the user whom the file names, else of the caller, else of
// libvirt, which confirms it. Anybody's process can have any name.
func (a *Applier) find(g *guestfile.Guest) (*Plan, error) {
	running, err := a.running()
	if err != nil {
		return &Plan{VM: g.VM}, err
	}
	return find(g, running, os.Geteuid())
}

func (a *Applier) running() (qemu.Running, error) {
	if a.look != nil {
		return a.look()
	}
	return qemu.Look()
}

// Describe returns a file that declares a guest as it is: one of the caller or libvirt, or else the
// only one of that name, with its user. It has no NICs if the guest has none.
func (a *Applier) Describe(ctx context.Context, vm string) (*guestfile.Guest, error) {
	g := &guestfile.Guest{VM: vm}
	p, err := a.find(g)
	if err != nil {
		return g, err
	}
	if !p.Running && len(p.others) == 1 {
		g.User, p.target.PID = userText(p.others[0].UID), p.others[0].PID
	}
	there, err := a.Manager.Records(ctx, p.target)
	for _, r := range there {
		g.Add(r.Record, r.Stored)
	}
	return g, err
}

// userText names a user, who may have no name.
func userText(uid int) string {
	text := strconv.Itoa(uid)
	u, err := user.LookupId(text)
	if err != nil {
		return text
	}
	return u.Username
}

// find finds the guest among what runs. caller is the user whose guest a file means that names no
// user.
func find(g *guestfile.Guest, running qemu.Running, caller int) (*Plan, error) {
	p := &Plan{VM: g.VM, target: nic.Target{VM: g.VM}}
	owner, named, err := g.UID()
	if err != nil {
		return p, err
	}
	if !named {
		owner = caller
	}
	var own, libvirts []qemu.Process
	for _, proc := range running.All {
		switch {
		case proc.Name != g.VM:
		case proc.UID == owner && !proc.Libvirt:
			own = append(own, proc)
		case proc.Libvirt && !named:
			libvirts = append(libvirts, proc)
		default:
			p.others = append(p.others, proc)
			p.Notices = append(p.Notices, fmt.Sprintf(
				"process %d of uid %d has the name too, and is not the guest that the file means (with user: %d it would be)",
				proc.PID, proc.UID, proc.UID))
		}
	}
	switch {
	case len(own) > 1:
		return p, fmt.Errorf("guest %s: %w: processes %s", g.VM, qemu.ErrAmbiguous, identity(own))
	case len(own) == 1 && named:
		p.target.PID = own[0].PID
	case len(own) == 0:
		own = libvirts
	}
	p.Running, p.self = len(own) > 0, identity(own)
	p.comes = slices.ContainsFunc(own, func(proc qemu.Process) bool { return proc.Incoming && !proc.Libvirt })
	return p, nil
}

// identity names processes so that no later ones have the same names.
func identity(procs []qemu.Process) string {
	var all []string
	for _, p := range procs {
		all = append(all, fmt.Sprintf("%d (started at %d)", p.PID, p.Started))
	}
	return strings.Join(all, ", ")
}
