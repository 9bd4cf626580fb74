package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/libvirthook/hookfile"
	"vmnet/libvirt"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What libvirt opens by its name must be there before the guest starts: the hook makes it, of what
// the domain's metadata declares. A guest that is saved, snapshot with its memory or migrated
// starts again from its running definition, and one that was off from the stored one: so a NIC is
// declared in each of the two that has its interface.

// missing returns the definitions that do not declare the NIC.
func (d *domain) missing(ctx context.Context, nic string, in []libvirt.Affect) (missing []libvirt.Affect, err error) {
	for _, affect := range in {
		has, err := d.declares(ctx, nic, affect)
		if err != nil {
			return nil, err
		}
		if !has {
			missing = append(missing, affect)
		}
	}
	return missing, nil
}

// declares reports whether the NIC is declared in the domain's running or stored definition. There
// is none of a domain that is off, or transient.
func (d *domain) declares(ctx context.Context, nic string, in libvirt.Affect) (bool, error) {
	if in == libvirt.AffectLive && d.dom.ID < 0 {
		return false, nil
	}
	if in == libvirt.AffectConfig {
		if persistent, err := d.IsPersistent(ctx, d.dom); err != nil || !persistent {
			return false, err
		}
	}
	element, err := d.Metadata(ctx, d.dom, declared.Namespace, in)
	if errors.Is(err, libvirt.ErrNoMetadata) {
		return false, nil
	}
	if err != nil {
		return false, explainStopped(err)
	}
	return declared.Declares(element, nic)
}

// declareStep comes before the interface: the hook passes over a NIC that is declared and has none.
func (d *domain) declareStep(spec nic.Spec, in []libvirt.Affect) step.Step {
	return d.editStep("declare", fmt.Sprintf("libvirt: metadata of %s: NIC %s, for the hook to make when the guest starts again", d.dom.Name, spec.NIC), in,
		func(element string) (string, error) { return declared.Declare(element, spec) })
}

func (d *domain) undeclareStep(name, nic string, in libvirt.Affect) step.Step {
	return d.editStep(name, fmt.Sprintf("libvirt: metadata of %s: no NIC %s", d.dom.Name, nic), []libvirt.Affect{in},
		func(element string) (string, error) { return declared.Undeclare(element, nic) })
}

// undeclareRunning comes after the interface has gone. What a guest keeps of a NIC that was cut off
// stays declared: else the guest could be saved, and not be restored.
func (d *domain) undeclareRunning(nic string) step.Step {
	s := d.undeclareStep("undeclare", nic, libvirt.AffectLive)
	edit := s.Do
	s.Do = func(ctx context.Context) error {
		if has, err := d.has(ctx, nic); err != nil || has {
			return explainStopped(err)
		}
		return edit(ctx)
	}
	return s
}

// editStep edits the element in those definitions.
func (d *domain) editStep(name, text string, in []libvirt.Affect, edit func(string) (string, error)) step.Step {
	former := map[libvirt.Affect]string{}
	set := func(ctx context.Context, affect libvirt.Affect, element string) error {
		return explainStopped(d.SetMetadata(ctx, d.dom, declared.Prefix, declared.Namespace, element, affect))
	}
	return step.Step{
		Name: name,
		Text: text,
		Do: func(ctx context.Context) error {
			for _, affect := range in {
				element, err := d.Metadata(ctx, d.dom, declared.Namespace, affect)
				if err != nil && !errors.Is(err, libvirt.ErrNoMetadata) {
					return explainStopped(err)
				}
				edited, err := edit(element)
				if err != nil {
					return err
				}
				former[affect] = element
				if err := set(ctx, affect, edited); err != nil {
					return err
				}
			}
			return nil
		},
		Undo: func(ctx context.Context) error {
			var errs []error
			for affect, element := range former {
				if err := set(ctx, affect, element); !errors.Is(err, errEnded) { // the running definition has gone with it
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
}

// costOfNoHook is what a person should know of a NIC whose device nobody will make again. Where
// libvirtd's hooks cannot be seen, as in another process namespace, nothing is known of them.
func (d *domain) costOfNoHook(r nic.Record) []string {
	pid, err := d.Peer()
	if err != nil || pid == 0 {
		return nil
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	if program, err := hookfile.Look(filepath.Join(root, hookfile.Dir)); err == nil {
		if _, err := os.Stat(filepath.Join(root, program)); err == nil {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	cost := "cannot be restored with this NIC once it was saved, migrated or put back to a snapshot"
	switch {
	case len(d.store) == 0:
	case r.Type == nic.TypeTap:
		cost = "starts without a network at this NIC, or not at all, and " + cost
	default:
		cost = "starts with a macvtap of which libvirt alone knows, or not at all, and " + cost
	}
	return []string{fmt.Sprintf("libvirt does not call vmnet's hook: %s %s (vmnet hook install)", d.dom.Name, cost)}
}
