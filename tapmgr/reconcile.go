package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Action is one thing that Reconcile did, would do, or left alone.
type Action struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	Action    string `json:"action"`          // in words
	Changed   bool   `json:"changed"`         // it changes something
	Error     string `json:"error,omitempty"` // why it did not succeed
}

// monitorWait bounds how long reading verbs and reconcile wait for a guest's monitor.
const monitorWait = 2 * time.Second

// Reconcile makes what is agree with what should be: it removes what is ours
// and has no guest any more, takes back attaches and ends detaches that were cut
// short, and mends what Check says that it does. What a living vmnet works on and
// what is on another bridge is left alone. Of the taps of
// which only their bridge is known, those that nobody holds are removed, or taken off the
// bridge if they were there before. dry only tells.
//
// Failures are told in the actions; the error is about the reading of what is.
func (m *Manager) Reconcile(ctx context.Context, dry bool) ([]Action, error) {
	links, err := m.inventory(ctx)
	if err != nil {
		return nil, err
	}
	r := &reconciler{m: m, dry: dry, actions: []Action{}}
	failed := r.leftOvers(ctx, links)
	var held []ours
	for _, o := range links {
		switch {
		case o.isHearsay():
			if !o.isWell() {
				r.note(o, "left alone: "+o.hearsayText())
			}
		case o.unheld() && o.isSocket():
			r.do(o, "removed: nobody holds it", func() error { return r.m.leave(ctx, &o) })
		case o.unheld():
			r.do(o, "removed: nobody holds it", func() error { return failed[o.Index] })
		case o.starts():
			r.note(o, "left alone: it was made for a guest that is about to start")
		case o.busy:
			r.note(o, "left alone: it is being attached")
		case o.stranger() != 0:
			r.note(o, fmt.Sprintf("left alone: process %d holds it", o.stranger()))
		case o.vmm() == 0:
			r.note(o, "left alone: who holds it cannot be seen from here")
		default:
			held = append(held, o)
		}
	}
	for _, actions := range eachGuest(ctx, held, r.reconcileGuest) {
		r.actions = append(r.actions, actions...)
	}
	return r.actions, r.plainTaps(ctx)
}

type reconciler struct {
	m       *Manager
	dry     bool
	actions []Action
}

// leftOvers deletes the links that nobody holds, and tells by link index which it could not.
func (r *reconciler) leftOvers(ctx context.Context, links []ours) map[int]error {
	if r.dry {
		return nil
	}
	var left []ours
	for _, o := range links {
		if o.unheld() && !o.isSocket() {
			left = append(left, o)
		}
	}
	return r.m.deleteLeftOvers(ctx, left)
}

func (r *reconciler) note(o ours, text string) {
	r.actions = append(r.actions, Action{VM: o.want.VM, NIC: o.want.NIC, Interface: o.Name, Action: text})
}

// fail tells that a NIC could not be looked into.
func (r *reconciler) fail(o ours, err error) {
	r.actions = append(r.actions, Action{VM: o.want.VM, NIC: o.want.NIC, Interface: o.Name, Action: "not looked into", Error: err.Error()})
}

func (r *reconciler) do(o ours, text string, f func() error) {
	a := Action{VM: o.want.VM, NIC: o.want.NIC, Interface: o.Name, Action: text, Changed: true}
	if !r.dry {
		if err := f(); err != nil {
			a.Error = err.Error()
		}
	}
	r.actions = append(r.actions, a)
}

func (r *reconciler) reconcileGuest(ctx, reading context.Context, nics []ours) []Action {
	one := reconciler{m: r.m, dry: r.dry}
	one.guest(ctx, reading, nics)
	return one.actions
}

// guest looks at the NICs that one QEMU holds, under that guest's lock.
func (r *reconciler) guest(ctx, reading context.Context, nics []ours) {
	ctx, cancel := context.WithTimeout(ctx, monitorWait+time.Duration(len(nics))*releaseWait)
	defer cancel()
	pid := nics[0].vmm()
	if pid == 0 { // it has ended since, and its NICs with it
		return
	}
	vm, err := r.m.open(reading, nic.Target{VM: nics[0].want.VM, PID: pid}, nics[0].want.Via)
	if err != nil {
		if nics[0].vmm() == 0 { // likewise, whatever its end has cut off
			return
		}
		for _, o := range nics {
			if o.want.Phase == nic.PhasePlugged || o.want.Phase == nic.PhaseDetaching {
				r.mend(ctx, o) // needs no lock
			}
			r.fail(o, err)
		}
		return
	}
	defer vm.Close()
	for i, o := range nics {
		if i > 0 { // it has answered, and what was done since may have taken its time
			var cancel context.CancelFunc
			reading, cancel = monitorTimeout(ctx)
			defer cancel()
		}
		r.nic(ctx, reading, vm, o)
	}
}

// nic decides about one NIC whose guest is locked.
func (r *reconciler) nic(ctx, reading context.Context, vm vmm, o ours) {
	now, err := r.m.again(ctx, o)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	has := false
	if err == nil {
		has, err = vm.has(reading, o.want.NIC)
	}
	switch {
	case err != nil && o.vmm() == 0: // it has ended since
	case err != nil:
		r.fail(o, err)
	case !has:
		r.do(now, "removed: the guest has no such device", func() error {
			if err := r.m.mayRelease(ctx, &now, vm); err != nil {
				return err
			}
			return r.m.release(ctx, vm, &now)
		})
	default:
		if now.want.Phase == nic.PhaseAttaching || now.want.Phase == nic.PhaseStarting {
			r.do(now, "kept: it is plugged, which its alias did not say yet", func() error { return r.m.markPlugged(ctx, now) })
		}
		r.mend(ctx, now)
	}
}

// mend puts right what differs, and tells what it leaves alone. It needs no guest's lock.
func (r *reconciler) mend(ctx context.Context, o ours) {
	v, err := r.m.view(&o)
	switch {
	case err != nil && o.isOthers():
		r.note(o, fmt.Sprintf("left alone: %v", err))
	case err != nil:
		r.fail(o, err)
	}
	for _, f := range v.compare() {
		if f.fix.kind == notFixed {
			r.note(o, "left alone: "+f.notice())
			continue
		}
		r.do(o, f.done, func() error { return r.m.mend(ctx, v, f.fix) })
	}
}

func (m *Manager) markPlugged(ctx context.Context, o ours) error {
	o.want.Phase, o.want.Since = nic.PhasePlugged, 0
	alias, err := o.want.Encode()
	if err != nil {
		return err
	}
	return m.setAlias(ctx, &o, alias)
}

func orNothing(s string) string { return cmp.Or(s, "nothing special") }

// putBack makes a tap without a master a port of its bridge again, or of the one that was made in its place.
func (m *Manager) putBack(o *ours, br *rtnl.Link) error {
	if err := m.nl.SetQuiet(o.Index, rtnl.MTU(br.MTU)); err != nil {
		return err
	}
	if o.isPlain() || o.want.At == br.Index {
		return bridge.AddPortWith(m.nl, br, o.Link, o.want.PortConfig())
	}
	r := o.want
	r.At = br.Index
	text, err := r.Encode()
	if err != nil {
		return err
	}
	return bridge.AddPortWith(m.nl, br, o.Link, o.want.PortConfig(), rtnl.Alias(text))
}

// masterName names what a link is a port of; empty for nothing.
func (m *Manager) masterName(l *rtnl.Link) string {
	if master := m.masterOf(l); master != nil {
		return master.Name
	}
	return ""
}
