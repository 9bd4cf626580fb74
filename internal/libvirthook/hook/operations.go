package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// undoWait bounds how long the removal of new devices may take.
const undoWait = 3 * time.Second

// prepare makes the devices that libvirt is about to open by name: all of them or none. For a
// device that libvirt makes itself, it removes what is in the way.
func (w *work) prepare(ctx context.Context) error {
	nics, err := w.nics()
	if err != nil {
		return err
	}
	for _, n := range nics {
		if n.Absent() {
			w.notes = append(w.notes, fmt.Sprintf("guest %s, nic %s: declared, but no interface has <alias name='%s'/>: nothing is made for it (vmnet detach --persistent removes it)", w.Guest, n.ID, domainxml.Alias(n.ID)))
		}
		var err error
		switch {
		case !n.Made || n.Absent():
		case n.Adopted():
			err = w.m.Expect(ctx, n.Spec)
		default:
			err = w.tell(n, func() (nic.Result, error) { return w.m.Prepare(ctx, n.Spec) })
		}
		if err != nil {
			return errors.Join(err, w.undo(ctx))
		}
	}
	return nil
}

// tell runs do for a NIC, and notes what is worth logging.
func (w *work) tell(n declared.NIC, do func() (nic.Result, error)) error {
	res, err := do()
	for _, note := range res.Notices {
		w.notes = append(w.notes, fmt.Sprintf("guest %s, nic %s: %s", w.Guest, n.ID, note))
	}
	return err
}

func (w *work) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel()
	if err := w.release(ctx); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// start adopts the taps that libvirt has made by now and still holds itself, and sets the ports of
// others, before QEMU runs (qemuProcessLaunch in src/qemu/qemu_process.c: libvirt builds the
// command line, and the taps with it, before it calls this hook). A libvirt that makes them later
// leaves them to started.
func (w *work) start(ctx context.Context) error {
	nics, err := w.nics()
	if err != nil {
		return err
	}
	later := func(err error) bool { return errors.Is(err, fs.ErrNotExist) }
	if err := w.adopt(ctx, nics, later, w.Caller); err != nil {
		return err
	}
	return w.setPorts(ctx, nics, later)
}

// adopt makes the devices that libvirt has made what is declared. It does nothing where that was
// done. makers are the processes of which one must have them open.
func (w *work) adopt(ctx context.Context, nics []declared.NIC, pass func(error) bool, makers ...int) error {
	for _, n := range nics {
		if !n.Adopted() {
			continue
		}
		err := w.tell(n, func() (nic.Result, error) { return w.m.Adopt(ctx, n.Spec, makers...) })
		if err != nil && !pass(err) {
			return err
		}
	}
	return nil
}

// started sets the ports of libvirt's taps that are not set yet, and finishes prepare's work.
func (w *work) started(ctx context.Context) error {
	nics, err := w.nics()
	if err != nil {
		return err
	}
	pids, err := w.processes()
	if err != nil {
		return err
	}
	if err := w.adopt(ctx, nics, func(error) bool { return false }, append(pids, w.Caller)...); err != nil {
		return err
	}
	for _, n := range nics {
		if n.Made && !n.Absent() && n.Spec.Lower == nil {
			if err := w.m.Opened(n.Spec.Device); err != nil { // the guest must not continue on a stranger's device
				return fmt.Errorf("nic %s: %w", n.ID, err)
			}
		}
	}
	return w.finish(ctx, nics, pids)
}

// reconnect does the same as started for a guest that has run for a while, and may have gained and
// lost NICs since.
func (w *work) reconnect(ctx context.Context) error {
	def, err := w.definition()
	if err != nil {
		return err
	}
	nics, err := declared.Ports(def)
	nics = slices.DeleteFunc(nics, func(n declared.NIC) bool { return n.Interface.Type == "" })
	pids, notFound := w.processes()
	if notFound != nil {
		return errors.Join(err, notFound)
	}
	return errors.Join(err, w.finish(ctx, nics, pids))
}

// finish looks after the NICs of a guest whose QEMU runs. Failures with devices of our own are
// notes: their ports were set when they were made, and what fails here leaves a device behind at
// worst.
func (w *work) finish(ctx context.Context, nics []declared.NIC, pids []int) error {
	if err := w.setPorts(ctx, nics, func(error) bool { return false }); err != nil {
		return err
	}
	for _, pid := range pids {
		actions, err := w.m.Started(ctx, w.Guest, pid)
		if err = errors.Join(err, failures(actions)); err != nil {
			w.notes = append(w.notes, fmt.Sprintf("guest %s, process %d: %v (vmnet reconcile tries again)", w.Guest, pid, err))
		}
	}
	return nil
}

// processes returns the processes that may be the guest's QEMU: one, unless another process
// pretends to be. Only devices that they hold are changed.
func (w *work) processes() ([]int, error) {
	all, err := qemu.OfDomain(w.def.Name, w.def.UUID.String(), w.def.RunAs)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		pids = append(pids, p.PID)
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("%w: no QEMU of libvirt has the UUID %s", qemu.ErrNotFound, w.def.UUID)
	}
	return pids, nil
}

// setPorts sets the ports of the taps that libvirt has made.
func (w *work) setPorts(ctx context.Context, nics []declared.NIC, pass func(error) bool) error {
	var errs []error
	for _, n := range nics {
		if n.Made {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := w.setPort(n); err != nil && !pass(err) {
			errs = append(errs, fmt.Errorf("nic %s: %w", n.Label(), err))
		}
	}
	return errors.Join(errs...)
}

// setPort finds the tap by its name, or, if the XML has none yet, by what libvirt itself holds: any
// user can hold a tap with the guest's MAC, and claim to be its QEMU.
func (w *work) setPort(n declared.NIC) (err error) {
	if n.Interface.Target != "" {
		_, err = w.m.SetForeignPortNamed(n.Interface.Target, n.MAC, n.Port)
	} else {
		_, err = w.m.SetForeignPort(w.Caller, n.MAC, n.Port)
	}
	return err
}

// release removes what was handed over by name and is no longer held: macvtaps, and everything that
// was made for a guest that did not start. It uses the guest's name alone, whatever its XML says by
// now.
func (w *work) release(ctx context.Context) error {
	actions, err := w.m.Release(ctx, w.Guest)
	return errors.Join(err, failures(actions))
}
