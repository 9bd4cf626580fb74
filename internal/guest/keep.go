package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// storable returns an error if libvirt does not store NICs of the domain.
func (d *Domain) storable(ctx context.Context) error {
	isPersistent, err := d.IsPersistent(ctx, d.dom)
	switch {
	case err != nil:
		return err
	case !isPersistent:
		return step.WithStage(nic.ErrInvalid,
			fmt.Errorf("domain %s is transient, libvirt stores nothing of it (leave out --persistent)", d.dom.Name))
	}
	return nil
}

// Stored reports whether libvirt has stored the NIC, so that the guest starts with it.
func (d *Domain) Stored(ctx context.Context, nicID string) (bool, error) {
	x, err := d.stored(ctx, nicID)
	return x != nil, err
}

// stored returns a NIC as libvirt has stored it; nil if it has not.
func (d *Domain) stored(ctx context.Context, nicID string) (*domainxml.Interface, error) {
	def, err := d.storedDomain(ctx)
	if err != nil || def == nil {
		return nil, err
	}
	i := slices.IndexFunc(def.Interfaces, func(i domainxml.Interface) bool {
		return i.Alias == nic.LibvirtAlias(nicID)
	})
	if i < 0 {
		return nil, nil
	}
	return &def.Interfaces[i], nil
}

// storedDomain returns the domain as libvirt has stored it; nil if it has not.
func (d *Domain) storedDomain(ctx context.Context) (*domainxml.Definition, error) {
	if persistent, err := d.IsPersistent(ctx, d.dom); err != nil || !persistent {
		return nil, err
	}
	text, err := d.XML(ctx, d.dom, libvirt.XMLInactive)
	if err != nil {
		return nil, err
	}
	return domainxml.Parse(text)
}

// storedAs reports whether libvirt has stored the NIC already, for that device or one that libvirt
// names itself. Another NIC of the same id is an error that matches nic.ErrExist.
func (d *Domain) storedAs(ctx context.Context, r nic.Record, device string) (bool, error) {
	x, err := d.stored(ctx, r.NIC)
	if err != nil || x == nil {
		return false, err
	}
	if !bytes.Equal(x.MAC, r.MAC) || x.Target != device && (x.Target != "" || x.Unmanaged) {
		return false,
			fmt.Errorf(
				"%w: libvirt has stored another NIC as %s, with MAC %s on %q (vmnet detach --persistent removes it)",
				nic.ErrExist, nic.LibvirtAlias(r.NIC), x.MAC, x.Target)
	}
	return true, nil
}

// A Keep is what makes a NIC come back: Declare for a guest that is restored, Store for each start.
// The steps of Declare come before the NIC's interface is there, those of Store after it.
type Keep struct{ Declare, Store []step.Step }

// Steps returns all of it, for a NIC that is plugged already.
func (k Keep) Steps() []step.Step { return slices.Concat(k.Declare, k.Store) }

// Keep decides what makes a NIC come back: for a guest that is restored, and if spec is Persistent
// at each start. What is kept already of a NIC that is plugged stays as it is.
func (d *Domain) Keep(ctx context.Context, spec nic.Spec, r nic.Record, device string,
	isPlugged bool,
) (k Keep, err error) {
	in := []libvirt.Affect{libvirt.AffectLive}
	if spec.Persistent {
		if err := d.storable(ctx); err != nil {
			return k, err
		}
		isStored, err := d.storedAs(ctx, r, device)
		if err != nil {
			return k, err
		}
		if !isStored {
			s, err := d.storeStep(spec, r, device)
			if err != nil {
				return k, err
			}
			k.Store = append(k.Store, s)
		}
		in = append(in, libvirt.AffectConfig)
	}
	if isPlugged {
		if in, err = d.missing(ctx, r.NIC, in); err != nil {
			return k, err
		}
	}
	if len(in) > 0 {
		spec.Port = r.PortConfig()
		k.Declare = append(k.Declare, d.declareStep(spec, in))
	}
	return k, nil
}

// KeepPlugged is Keep for a NIC that is plugged, with what the caller should know.
func (d *Domain) KeepPlugged(ctx context.Context, spec nic.Spec, r nic.Record,
	device string,
) (steps []step.Step, notices []string, err error) {
	k, err := d.Keep(ctx, spec, r, device, true)
	if len(k.Store) > 0 {
		notices = d.costOfNoHook(r, true)
	}
	return k.Steps(), notices, err
}

// StoreSteps have libvirt store a NIC that is plugged, or forget it, as spec.Persistent says. The
// list is empty if it is so already.
func (d *Domain) StoreSteps(ctx context.Context, spec nic.Spec, r nic.Record, device string) ([]step.Step, error) {
	stored, err := d.Stored(ctx, r.NIC)
	switch {
	case err != nil || stored == spec.Persistent:
		return nil, err
	case !spec.Persistent:
		return d.forgetStored(ctx, spec, r, device)
	}
	if spec.Lower != nil { // the record lacks some of its options
		element, err := d.Metadata(ctx, d.dom, declared.Namespace, libvirt.AffectLive)
		if err != nil && !errors.Is(err, libvirt.ErrNoMetadata) {
			return nil, explainStopped(err)
		}
		if spec, err = completed(element, r); err != nil {
			return nil, err
		}
		spec.Persistent = true
	}
	k, err := d.Keep(ctx, spec, r, device, true)
	return k.Steps(), err
}

// forgetStored has libvirt forget what it has stored of a NIC that stays.
func (d *Domain) forgetStored(ctx context.Context, spec nic.Spec, r nic.Record, device string) ([]step.Step, error) {
	restore, err := d.storeStep(spec, r, device)
	if err != nil {
		return nil, err
	}
	forget := d.forgetStep(r.NIC)
	forget.Undo = restore.Do
	list := []step.Step{forget}
	isDeclared, err := d.declares(ctx, r.NIC, libvirt.AffectConfig)
	if err == nil && isDeclared {
		list = append(list, d.undeclareStep("undeclare stored", r.NIC, libvirt.AffectConfig))
	}
	return list, err
}

func (d *Domain) forgetStep(nicID string) step.Step {
	return step.Step{
		Name: "forget",
		Text: fmt.Sprintf("libvirt: detach %s from what is stored of %s", nic.LibvirtAlias(nicID), d.dom.Name),
		Do:   func(ctx context.Context) error { return d.forget(ctx, nicID) },
	}
}

// storeStep has libvirt store a NIC.
func (d *Domain) storeStep(spec nic.Spec, r nic.Record, device string) (step.Step, error) {
	text, err := storedXML(spec, r, device)
	return step.Step{
		Name: "store",
		Text: fmt.Sprintf("libvirt: store %s with %s: %s", nic.LibvirtAlias(r.NIC), d.dom.Name, text),
		Do:   func(ctx context.Context) error { return d.AttachDevice(ctx, d.dom, text, libvirt.AffectConfig) },
		Undo: func(ctx context.Context) error { return d.forget(ctx, r.NIC) },
	}, err
}

// ForgetSteps remove what makes a NIC come back, as far as it is there: its declaration in the
// running definition and, if persistent, its declaration and interface in the stored one.
func (d *Domain) ForgetSteps(ctx context.Context, nicID string, persistent bool) ([]step.Step, error) {
	var list []step.Step
	if persistent {
		def, err := d.storedDomain(ctx)
		if err != nil {
			return nil, err
		}
		if def != nil {
			if text := def.InterfaceText(nic.LibvirtAlias(nicID)); text != "" {
				forget := d.forgetStep(nicID)
				forget.Undo = func(ctx context.Context) error {
					return d.AttachDevice(ctx, d.dom, text, libvirt.AffectConfig)
				}
				list = append(list, forget)
			}
		}
		isDeclared, err := d.declares(ctx, nicID, libvirt.AffectConfig)
		if err != nil {
			return nil, err
		}
		if isDeclared {
			list = append(list, d.undeclareStep("undeclare stored", nicID, libvirt.AffectConfig))
		}
	}
	isDeclared, err := d.declares(ctx, nicID, libvirt.AffectLive)
	if err == nil && isDeclared {
		list = append(list, d.undeclareRunning(nicID))
	}
	return list, err
}

// forget removes the NIC from the domain that libvirt stores. If it is not there, forget succeeds.
func (d *Domain) forget(ctx context.Context, nicID string) error {
	err := d.DetachDeviceAlias(ctx, d.dom, nic.LibvirtAlias(nicID), libvirt.AffectConfig)
	if err == nil {
		return nil
	}
	if x, readErr := d.stored(ctx, nicID); readErr == nil && x == nil { // 9.0 has no code of its own for that
		return nil
	}
	return err
}
