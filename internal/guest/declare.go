package guest

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

// What libvirt opens by its name must be there before the guest starts: the hook makes it from what
// the domain's metadata declares. A guest that was saved, migrated, or reverted to a snapshot with
// its memory starts from its running definition, a guest that was off from the stored one. So a NIC
// is declared in each of the two that has its interface.

// missing returns the definitions that do not declare the NIC.
func (d *Domain) missing(ctx context.Context, nicID string, in []libvirt.Affect) (missing []libvirt.Affect, err error) {
	for _, affect := range in {
		has, err := d.declares(ctx, nicID, affect)
		if err != nil {
			return nil, err
		}
		if !has {
			missing = append(missing, affect)
		}
	}
	return missing, nil
}

// declares reports whether the NIC is declared in the domain's running or stored definition. A
// domain that is off has no running definition, and a transient domain no stored one.
func (d *Domain) declares(ctx context.Context, nicID string, in libvirt.Affect) (bool, error) {
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
	return declared.Declares(element, nicID)
}

// declareStep declares the NIC. It comes before the interface: the hook skips a NIC that is
// declared without an interface.
func (d *Domain) declareStep(spec nic.Spec, in []libvirt.Affect) step.Step {
	return d.editStep("declare",
		fmt.Sprintf("libvirt: metadata of %s: NIC %s, for the hook to make when the guest starts again",
			d.dom.Name, spec.NIC), in,
		func(element string) (string, error) { return declared.Declare(element, spec) })
}

func (d *Domain) undeclareStep(name, nic string, in libvirt.Affect) step.Step {
	return d.editStep(name, fmt.Sprintf("libvirt: metadata of %s: no NIC %s", d.dom.Name, nic), []libvirt.Affect{in},
		func(element string) (string, error) { return declared.Undeclare(element, nic) })
}

// undeclareRunning comes after the interface has gone. If a guest keeps the device of a NIC that
// was disconnected by force, the NIC stays declared: otherwise the guest could be saved, but not be
// restored.
func (d *Domain) undeclareRunning(nic string) step.Step {
	s := d.undeclareStep("undeclare", nic, libvirt.AffectLive)
	edit := s.Do
	s.Do = func(ctx context.Context) error {
		if has, err := d.Has(ctx, nic); err != nil || has {
			return explainStopped(err)
		}
		return edit(ctx)
	}
	return s
}

// editStep edits the element in those definitions.
func (d *Domain) editStep(name, text string, in []libvirt.Affect, edit func(string) (string, error)) step.Step {
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
				if err := set(ctx, affect, element); !errors.Is(err, errEnded) {
					// the running definition has gone with it
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
}

// costOfNoHook returns what the caller should know of a NIC if libvirt does not call the hook,
// which makes the NIC's device again. If libvirt's hooks cannot be seen, as in another PID
// namespace, it returns nothing.
func (d *Domain) costOfNoHook(r nic.Record, isStored bool) []string {
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
	case !isStored:
	case nic.HasTap(r.Type):
		cost = "starts without a network at this NIC, or not at all, and " + cost
	default:
		cost = "starts with a macvtap of which libvirt alone knows, or not at all, and " + cost
	}
	return []string{fmt.Sprintf("libvirt does not call vmnet's hook: %s %s (vmnet hook install)", d.dom.Name, cost)}
}
