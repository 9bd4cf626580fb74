// Package hook implements libvirt's hook for QEMU guests: it makes the devices of a guest's
// declared NICs before libvirt opens them by name, sets the ports of the taps that libvirt makes,
// and removes what is left when the guest has ended. The devices of a guest that arrives from
// another host stay down until a commit.
//
// Libvirt calls the hook with the guest's name, an operation, and the guest's XML on standard input
// (docs/hooks.rst and src/util/virhook.c of libvirt). It holds the guest's lock meanwhile, and
// waits without limit: so this package makes no calls to libvirt, and the caller bounds the time.
package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// maxXML bounds the part of a guest's XML that is read, in bytes; libvirt's own strings end at 4
// MiB.
const maxXML = 16 << 20

// Call is one call of the hook by libvirt.
type Call struct {
	Guest  string
	Op     string // "prepare", "release"
	SubOp  string // "begin", "end"
	XML    string // of the guest
	Caller int    // PID of libvirt
}

// Read parses the hook's input from libvirt: the arguments GUEST OP SUBOP EXTRA, and the XML. EXTRA
// is not used. XML beyond maxXML is cut off.
func Read(args []string, stdin io.Reader, caller int) (Call, error) {
	if len(args) != 4 {
		return Call{}, fmt.Errorf("%d arguments: libvirt calls a hook with GUEST OPERATION SUBOPERATION EXTRA",
			len(args))
	}
	c := Call{Guest: args[0], Op: args[1], SubOp: args[2], Caller: caller}
	var b strings.Builder
	_, err := io.Copy(&b, io.LimitReader(stdin, maxXML))
	c.XML = b.String()
	if err != nil {
		err = fmt.Errorf("read the XML of guest %s: %w", c.Guest, err)
	}
	return c, err
}

// Concerns reports whether the hook has anything to do. It is quick: libvirt calls the hook for
// every guest.
func (c Call) Concerns() bool {
	return c.operation().do != nil && (strings.Contains(c.XML, declared.Namespace) ||
		strings.Contains(c.XML, domainxml.Alias("")))
}

// MustSucceed reports whether a failure has to reach libvirt. For other operations a failure would
// end a running guest.
func (c Call) MustSucceed() bool { return c.operation().failure != goesOn }

// Outcome is what came of a call.
type Outcome struct {
	Notes []string // for the log: libvirt does not need them
	// Awaits reports that NICs of the guest need a commit once it has arrived. At migrate, they are
	// yet to be made.
	Awaits bool
}

// Run performs the operation in the Maker's netns.
func (c Call) Run(ctx context.Context, m *backend.Maker) (Outcome, error) {
	op := c.operation()
	if op.do == nil {
		return Outcome{}, nil
	}
	w := &work{Call: c, m: m, arrivals: ofSystem}
	if err := op.do(w, ctx); err != nil {
		return w.Outcome, fmt.Errorf("%s %s: %w", c.Op, c.Guest, err)
	}
	return w.Outcome, nil
}

// operation is a hook operation of libvirt.
type operation struct {
	name, subOp string
	do          func(*work, context.Context) error // nil for nothing
	failure     string                             // the effect of a failure
}

// The effects of a failure.
const (
	staysAway = "the guest stays where it is"
	isRefused = "the guest does not start"
	isLogged  = "libvirt logs it, nothing else"
	goesOn    = "it is logged, and the guest continues"
)

// operations are all hook operations, in the order of a guest's life. Until the guest has started,
// libvirt reports a failure, and the guest does not run with less than was declared. Libvirt would
// kill a running guest for a failure of reconnect. Libvirt replaces the XML by the output of
// migrate and restore; without output the XML stays as it is.
var operations = []operation{
	{"migrate", "begin", (*work).expect, staysAway},
	{"restore", "begin", nil, ""},
	{"prepare", "begin", (*work).prepare, isRefused},
	{"start", "begin", (*work).start, isRefused},
	{"started", "begin", (*work).started, isRefused},
	{"reconnect", "begin", (*work).reconnect, goesOn},
	{"attach", "begin", nil, ""},
	{"stopped", "end", nil, ""},
	{"release", "end", (*work).release, isLogged},
}

// operation returns the call's operation, or one that does nothing if this version does not know
// it.
func (c Call) operation() operation {
	for _, op := range operations {
		if op.name == c.Op && op.subOp == c.SubOp {
			return op
		}
	}
	return operation{failure: goesOn}
}

// work is one call in progress.
type work struct {
	Call
	Outcome
	m        *backend.Maker
	def      *domainxml.Definition
	arrivals arrivals
}

// nics reads the declared NICs of a starting guest.
func (w *work) nics() ([]declared.NIC, error) {
	def, err := w.definition()
	if err != nil {
		return nil, err
	}
	return declared.Parse(def)
}

func (w *work) definition() (*domainxml.Definition, error) {
	def, err := domainxml.Parse(w.XML)
	if err != nil {
		return nil, err
	}
	if def.Name != w.Guest {
		return nil, fmt.Errorf("the XML belongs to guest %q", def.Name)
	}
	w.def = def
	return def, nil
}

// failures returns the errors among the actions.
func failures(actions []nic.Action) error {
	var errs []error
	for _, a := range actions {
		if a.Error != "" {
			errs = append(errs, fmt.Errorf("nic %s, interface %s: %s: %s", a.NIC, a.Interface, a.Action, a.Error))
		}
	}
	return errors.Join(errs...)
}

// undoWait bounds how long the removal of new devices may take.
const undoWait = 3 * time.Second

// prepare makes the devices that libvirt is about to open by name: all of them or none. For a
// device that libvirt makes itself, it removes what is in the way.
func (w *work) prepare(ctx context.Context) error {
	nics, err := w.waiting()
	if err != nil {
		return err
	}
	for _, n := range nics {
		if n.Absent() {
			w.Notes = append(w.Notes,
				fmt.Sprintf(
					"guest %s, nic %s: declared, but no interface has <alias name='%s'/>: nothing is made for it "+
						"(vmnet detach --persistent removes it)",
					w.Guest, n.ID, domainxml.Alias(n.ID)))
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
		w.Notes = append(w.Notes, fmt.Sprintf("guest %s, nic %s: %s", w.Guest, n.ID, note))
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
	nics, err := w.waiting()
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

// started sets the ports that are not set yet of the taps that libvirt made, and finishes the work
// of prepare.
func (w *work) started(ctx context.Context) error {
	nics, err := w.waiting()
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
	if err := w.finish(ctx, nics, pids); err != nil {
		return err
	}
	return w.arrive(ctx)
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
			w.Notes = append(w.Notes,
				fmt.Sprintf("guest %s, process %d: %v (vmnet reconcile tries again)", w.Guest, pid, err))
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
// now; only for the ports of taps that have gone, it asks the databases that the XML names.
func (w *work) release(ctx context.Context) error {
	actions, err := w.m.Release(ctx, w.Guest)
	errs := []error{err, failures(actions)}
	var specs []nic.Spec
	nics, parseErr := w.nics() // vmnet reconcile and vmnet watch remove what is left
	if parseErr == nil {
		errs = append(errs, w.arrivals.forget(w.def.UUID))
	}
	for _, n := range nics {
		specs = append(specs, n.Spec)
	}
	actions, err = w.m.TidyPorts(ctx, specs)
	return errors.Join(append(errs, err, failures(actions))...)
}
