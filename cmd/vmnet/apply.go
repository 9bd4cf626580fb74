package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/brport"
	"vmnet/internal/declare"
	"vmnet/internal/guestfile"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const applyLong = `Give running guests the NICs that their files declare: attach what is missing, change
what differs, and detach what is not declared. Without arguments, do so for all guests that have a
file. A guest that does not run gets its NICs when it starts, if vmnet watch runs.

A guest's file is ` + guestfile.DefaultDir + `/NAME.yaml, or for users other than root
~/.config/vmnet/guests.d/NAME.yaml. Its keys are the flags of vmnet attach: vmnet-guests(5). vmnet
show NAME -o yaml prints the file of a guest as it is. NICs that vmnet has not made are never
touched.

What cannot change while the NIC is plugged, such as its model, is refused with what to do. Each NIC
is changed as a whole or not at all, and one that fails does not keep others from it. An apply that
was interrupted is completed by the next one.`

const applyExamples = `  vmnet apply
  vmnet apply P2 --dry-run
  vmnet apply -f P2.yaml
  vmnet show P1 -o yaml | sed 's/^vm: .*/vm: P2/' | vmnet apply -f -`

// applyOptions is the command line of apply.
type applyOptions struct {
	dir, file string
	steps     stepFlags
	timeout   time.Duration
}

func (a *app) applyCommand() *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:     "apply [NAME...]",
		Short:   "Give guests the NICs that their files declare",
		Long:    applyLong,
		Example: applyExamples,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && o.file != "" {
				return fmt.Errorf("%s takes names of guests or -f, not both", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.declaredGuests(&o.dir),
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "the `FILE` of one guest, instead of the files of all; - is stdin")
	guestsDirFlag(cmd, &o.dir)
	durationFlag(f, &o.timeout, "timeout", 30*time.Second, time.Millisecond, "give up a NIC after this time")
	f.BoolVar(&o.steps.dryRun, "dry-run", false, "print the differences, and change nothing")
	f.BoolVarP(&o.steps.verbose, "verbose", "v", false, "log every step with the time it took to stderr")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		guests, broken, err := a.toApply(cmd, &o, args)
		if err != nil {
			return err
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			return errors.Join(append(broken, a.apply(cmd.Context(), m, guests, &o))...)
		})
	})
	return cmd
}

func guestsDirFlag(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "guests-dir", "",
		"`DIRECTORY` of the files of declared guests (default "+guestfile.DefaultDir+", or "+
			"~/.config/vmnet/guests.d for users other than root)")
}

// guestsDir returns the directory that was chosen, or the caller's.
func guestsDir(chosen string) (guestfile.Dir, error) {
	if chosen != "" || os.Geteuid() == 0 {
		return guestfile.Dir(cmp.Or(chosen, guestfile.DefaultDir)), nil
	}
	return guestfile.UserDir(os.Getenv)
}

// toApply reads the files that the command line means.
func (a *app) toApply(cmd *cobra.Command, o *applyOptions, names []string) (
	guests []*guestfile.Guest, broken []error, err error,
) {
	if o.file != "" {
		g, err := readGuest(cmd, o.file)
		return []*guestfile.Guest{g}, nil, err
	}
	dir, err := guestsDir(o.dir)
	if err != nil {
		return nil, nil, err
	}
	all, wrong, err := dir.All()
	if err != nil {
		return nil, nil, err
	}
	if len(names) == 0 {
		for _, name := range slices.Sorted(maps.Keys(wrong)) {
			broken = append(broken, wrong[name])
		}
		return all, broken, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(all, func(g *guestfile.Guest) bool { return g.VM == name })
		switch {
		case i >= 0:
			guests = append(guests, all[i])
		case wrong[name] != nil:
			return nil, nil, wrong[name]
		default:
			return nil, nil, fmt.Errorf("guest %q is not declared in %s (vmnet show %s -o yaml prints what it has)",
				name, dir, name)
		}
	}
	return guests, nil, nil
}

func readGuest(cmd *cobra.Command, path string) (*guestfile.Guest, error) {
	if path == "-" {
		return guestfile.Read("stdin", "", cmd.InOrStdin())
	}
	return guestfile.ReadFile(path)
}

// declaredGuests completes the names of guests that have a file.
func (a *app) declaredGuests(dir *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		d, err := guestsDir(*dir)
		if err != nil {
			return nil, noFiles
		}
		guests, _, _ := d.All()
		var names []cobra.Completion
		for _, g := range guests {
			if !slices.Contains(given, g.VM) {
				names = append(names, g.VM)
			}
		}
		return names, noFiles
	}
}

// applier returns what applies files to the guests of m.
func (a *app) applier(m *tapmgr.Manager, wait time.Duration) *declare.Applier {
	ap := &declare.Applier{Manager: m, AttachWait: wait, DetachWait: wait}
	if a.netns == "" && os.Geteuid() != 0 {
		ap.Join = func(s *nic.Spec) error { return joinOwn(context.Background(), s) }
		ap.Prepare = func(ctx context.Context, s nic.Spec) error {
			if s.Switch == nil || joinOwn(ctx, &nic.Spec{Network: s.Switch.Name}) != nil {
				return nil
			}
			return a.startOwn(ctx, s.Switch.Name)
		}
	}
	return ap
}

// appliedGuest is the result of apply for one guest.
type appliedGuest struct {
	VM      string       `json:"vm"`
	Running bool         `json:"running"`
	Changes []appliedNIC `json:"changes"`
	Error   string       `json:"error,omitempty"`
}

type appliedNIC struct {
	NIC         string           `json:"nic"`
	Action      guestfile.Action `json:"action"`
	Differences []nic.Change     `json:"differences"`
	Why         string           `json:"why,omitempty"`
	Changed     bool             `json:"changed"`
	Error       string           `json:"error,omitempty"`
}

func (a *app) apply(ctx context.Context, m *tapmgr.Manager, guests []*guestfile.Guest, o *applyOptions) error {
	ap := a.applier(m, o.timeout)
	ap.DryRun = o.steps.dryRun
	if ap.DryRun { // which prints the differences, and not the steps
		m.Run = func(context.Context, []step.Step) error { return nil }
	} else {
		o.steps.apply(a, m, a.json)
	}
	results := []appliedGuest{}
	var errs []error
	for _, g := range guests {
		p, err := ap.Plan(ctx, g)
		for _, n := range p.Notices {
			a.note(g.VM + ": " + n)
		}
		if err == nil {
			err = ap.Do(ctx, p)
		}
		if err != nil {
			errs = append(errs, ofFile(fmt.Errorf("apply %s: %w", g.VM, err)))
		}
		if !a.json {
			errs = append(errs, a.printPlan(p, o.steps.dryRun, err))
		}
		results = append(results, resultOf(p, err))
	}
	if a.json {
		errs = append(errs, a.printJSON(results))
	} else if len(guests) == 0 {
		errs = append(errs, a.line("no guest is declared"))
	}
	return errors.Join(errs...)
}

// ofFile returns an error that is not about the command line, whatever the file asks for.
func ofFile(err error) error {
	if errors.Is(err, nic.ErrInvalid) || errors.Is(err, brport.ErrInvalid) {
		return errors.New(err.Error())
	}
	return err
}

func resultOf(p *declare.Plan, err error) appliedGuest {
	r := appliedGuest{VM: p.VM, Running: p.Running, Changes: []appliedNIC{}}
	if err != nil {
		r.Error = err.Error()
	}
	for _, c := range p.Changes {
		if !c.IsChange() {
			continue
		}
		n := appliedNIC{NIC: c.NIC, Action: c.Action, Differences: c.Differences, Why: c.Why, Changed: c.Done}
		if n.Differences == nil {
			n.Differences = []nic.Change{}
		}
		if c.Err != nil {
			n.Error = c.Err.Error()
		}
		r.Changes = append(r.Changes, n)
	}
	return r
}

// printPlan prints a line for each change: of a dry run what would be done, else what was.
func (a *app) printPlan(p *declare.Plan, dry bool, failed error) error {
	if !p.Running {
		if failed != nil {
			return nil
		}
		return a.line("%s: not running", p.VM)
	}
	changed := false
	for _, c := range p.Changes {
		if !c.IsChange() {
			continue
		}
		changed = true
		for _, n := range c.Notices {
			a.note(fmt.Sprintf("%s/%s: %s", p.VM, c.NIC, n))
		}
		if c.Err != nil {
			continue // which says what was to be done
		}
		if err := a.line("%s/%s: %s", p.VM, c.NIC, changeText(c, dry)); err != nil {
			return err
		}
	}
	if !changed && failed == nil {
		return a.line("%s: unchanged", p.VM)
	}
	return nil
}

// done are the actions in the past.
var done = map[guestfile.Action]string{
	guestfile.Attach: "attached", guestfile.Set: "changed", guestfile.Detach: "detached",
}

func changeText(c declare.Change, dry bool) string {
	text := done[c.Action]
	if dry {
		text = string(c.Action)
	}
	var texts []string
	for _, d := range c.Differences {
		if c.Action == guestfile.Attach && d.From == "" {
			texts = append(texts, d.Flag+" "+d.To)
		} else {
			texts = append(texts, d.Flag+" "+orNone(d.From)+" -> "+orNone(d.To))
		}
	}
	if c.Why != "" {
		texts = append([]string{c.Why}, texts...)
	}
	if len(texts) == 0 {
		return text
	}
	return text + ": " + strings.Join(texts, ", ")
}

// checkDeclared adds what differs between the files of running guests and their NICs. Its error is
// about the directory of the files.
func (a *app) checkDeclared(ctx context.Context, m *tapmgr.Manager, chosen string, c *tapmgr.Checked) error {
	dir, err := guestsDir(chosen)
	if err != nil {
		return nil // a user without a home has no files
	}
	guests, broken, err := dir.All()
	if errors.Is(err, fs.ErrPermission) { // $HOME is another user's, say after sudo
		c.Notices = append(c.Notices, fmt.Sprintf("guests were not compared with their files: %v", err))
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		c.Differences = append(c.Differences, nic.Difference{
			VM: name, What: "declaration", Want: "a file that can be read", Found: broken[name].Error(),
			MendedBy: nic.MendAdmin, Mend: "correct the file",
		})
	}
	ap := a.applier(m, time.Minute)
	for _, g := range guests {
		p, err := ap.Plan(ctx, g)
		if err != nil {
			c.Notices = append(c.Notices, fmt.Sprintf("%s was not compared with its file: %v", g.VM, err))
			continue
		}
		for _, change := range p.Changes {
			if change.IsChange() && change.Why == "" { // check itself has found what is wrong
				c.Differences = append(c.Differences, declaredDifference(g.VM, change))
			}
		}
	}
	return nil
}

func declaredDifference(vm string, c declare.Change) nic.Difference {
	d := nic.Difference{
		VM: vm, NIC: c.NIC, Interface: c.Interface, What: "declaration", MendedBy: nic.MendApply,
		Mend: "vmnet apply " + vm,
	}
	var want, found []string
	for _, x := range c.Differences {
		want = append(want, x.Flag+" "+orNone(x.To))
		found = append(found, x.Flag+" "+orNone(x.From))
	}
	d.Want, d.Found = strings.Join(want, ", "), strings.Join(found, ", ")
	switch {
	case c.Action == guestfile.Detach:
		d.Want, d.Found = "no such NIC", "attached"
	case c.Action == guestfile.Attach:
		d.Want, d.Found = "attached", "no such NIC"
	case c.Err != nil:
		d.MendedBy, d.Mend = nic.MendDetach, fmt.Sprintf("vmnet apply %s after a detach: %v", vm, c.Err)
	}
	return d
}

// showDeclared prints the file of a guest as it is.
func (a *app) showDeclared(ctx context.Context, vm string) error {
	if err := nic.ValidVM(vm); err != nil {
		return usagef("%w", err)
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		g, err := a.applier(m, 0).Describe(ctx, vm)
		if err != nil {
			return fmt.Errorf("show %s: %w", vm, err)
		}
		if len(g.NICs) == 0 {
			return noNICs(vm)
		}
		_, err = a.out.Write(g.Format())
		return outputError(err)
	})
}
