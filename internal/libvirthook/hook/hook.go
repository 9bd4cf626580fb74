// Package hook implements libvirt's hook for QEMU guests: it makes the devices of a guest's
// declared NICs before libvirt opens them by name, sets the ports of the taps that libvirt makes,
// and removes what is left when the guest has ended.
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
	"strings"

	"vmnet/internal/backend"
	"vmnet/internal/libvirthook/declared"
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
		return Call{}, fmt.Errorf("%d arguments: libvirt calls a hook with GUEST OPERATION SUBOPERATION EXTRA", len(args))
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
	return c.operation().do != nil && (strings.Contains(c.XML, declared.Namespace) || strings.Contains(c.XML, domainxml.Alias("")))
}

// MustSucceed reports whether a failure has to reach libvirt. For other operations a failure would
// end a running guest.
func (c Call) MustSucceed() bool { return c.operation().failure != goesOn }

// Run performs the operation in the Maker's netns. The notes are for the log: libvirt does not need
// them.
func (c Call) Run(ctx context.Context, m *backend.Maker) (notes []string, err error) {
	op := c.operation()
	if op.do == nil {
		return nil, nil
	}
	w := &work{Call: c, m: m}
	if err := op.do(w, ctx); err != nil {
		return w.notes, fmt.Errorf("%s %s: %w", c.Op, c.Guest, err)
	}
	return w.notes, nil
}

// operation is one of libvirt's hook operations.
type operation struct {
	name, subOp string
	do          func(*work, context.Context) error // nil for nothing
	failure     string                             // the effect of a failure
}

// The effects of a failure.
const (
	isRefused = "the guest does not start"
	isLogged  = "libvirt logs it, nothing else"
	goesOn    = "it is logged, and the guest continues"
)

// operations are all hook operations, in the order of a guest's life. Until the guest has started,
// libvirt reports a failure, and the guest does not run with less than was declared. Libvirt would
// kill a running guest for a failure of reconnect. Libvirt replaces the XML by the output of
// migrate and restore; without output the XML stays as it is.
var operations = []operation{
	{"migrate", "begin", nil, ""},
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
	m     *backend.Maker
	def   *domainxml.Definition
	notes []string
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
