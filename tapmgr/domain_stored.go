package tapmgr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"vmnet/internal/step"
	"vmnet/libvirt"
)

// Declarations edit the element of a domain's metadata by which the hook makes the devices of NICs that libvirt has stored.
// An empty text is no element.
type Declarations struct {
	Namespace, Prefix string
	// Put is the element with the NIC of a Spec in it, in place of one of its id.
	Put func(element string, spec Spec) (string, error)
	// Has tells whether the NIC of that id is in the element.
	Has func(element, nic string) (bool, error)
	// Remove is the element without the NIC of that id.
	Remove func(element, nic string) (string, error)
}

// openStored opens a domain of libvirt's that may be off. There is nothing to lock then.
func (m *Manager) openStored(ctx context.Context, vm string) (*domain, error) {
	conn, err := m.dialLibvirt(ctx, nil, false)
	if err != nil {
		return nil, err
	}
	d := &domain{Conn: conn, m: m}
	if d.dom, err = d.LookupByName(ctx, vm); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// storable tells by an error why libvirt would not store a NIC.
func (d *domain) storable(ctx context.Context) error {
	stored, err := d.IsPersistent(ctx, d.dom)
	switch {
	case err != nil:
		return err
	case !stored:
		return in(ErrInvalid, fmt.Errorf("domain %s is transient, libvirt stores nothing of it (without --persistent)", d.dom.Name))
	case d.m.Declarations.Put == nil:
		return in(ErrInvalid, errors.New("this program cannot declare NICs (--persistent)"))
	}
	return nil
}

// declareStep comes before the NIC is stored: then the hook will make its device.
func (d *domain) declareStep(spec Spec) step.Step {
	return d.editStep("declare", fmt.Sprintf("libvirt: metadata of %s: NIC %s, for the hook to make at the next start", d.dom.Name, spec.NIC),
		func(element string) (string, error) { return d.m.Declarations.Put(element, spec) })
}

// editStep edits the element of both the stored and the running domain.
func (d *domain) editStep(name, text string, edit func(string) (string, error)) step.Step {
	all := []libvirt.Affect{libvirt.AffectConfig}
	if d.dom.ID >= 0 {
		all = append(all, libvirt.AffectLive)
	}
	former := map[libvirt.Affect]string{}
	set := func(ctx context.Context, affect libvirt.Affect, element string) error {
		decl := d.m.Declarations
		return d.SetMetadata(ctx, d.dom, decl.Prefix, decl.Namespace, element, affect)
	}
	return step.Step{
		Name: name,
		Text: text,
		Do: func(ctx context.Context) error {
			for _, affect := range all {
				element, err := d.Metadata(ctx, d.dom, d.m.Declarations.Namespace, affect)
				if err != nil && !errors.Is(err, libvirt.ErrNoMetadata) {
					return err
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
				errs = append(errs, set(ctx, affect, element))
			}
			return errors.Join(errs...)
		},
	}
}

// stored is a NIC as libvirt has stored it; nil for none.
func (d *domain) stored(ctx context.Context, nic string) (*libvirt.Interface, error) {
	if persistent, err := d.IsPersistent(ctx, d.dom); err != nil || !persistent {
		return nil, err
	}
	text, err := d.XML(ctx, d.dom, libvirt.XMLInactive)
	if err != nil {
		return nil, err
	}
	def, err := libvirt.ParseDefinition(text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(def.Interfaces, func(i libvirt.Interface) bool { return i.Alias == domainAlias(nic) })
	if i < 0 {
		return nil, nil
	}
	return &def.Interfaces[i], nil
}

// storedAs tells whether libvirt has stored the NIC already, for that device. Another of its id is an error that Is ErrExist.
func (d *domain) storedAs(ctx context.Context, nic string, mac net.HardwareAddr, device string) (bool, error) {
	x, err := d.stored(ctx, nic)
	if err != nil || x == nil {
		return false, err
	}
	if !bytes.Equal(x.MAC, mac) || x.Target != device {
		return false, fmt.Errorf("%w: libvirt has stored another NIC as %s, with MAC %s on %q (vmnet detach --persistent removes it)", ErrExist, domainAlias(nic), x.MAC, x.Target)
	}
	return true, nil
}

// declares tells whether the NIC is declared in what libvirt has stored.
func (d *domain) declares(ctx context.Context, nic string) (bool, error) {
	if d.m.Declarations.Has == nil {
		return false, nil
	}
	if persistent, err := d.IsPersistent(ctx, d.dom); err != nil || !persistent {
		return false, err
	}
	element, err := d.Metadata(ctx, d.dom, d.m.Declarations.Namespace, libvirt.AffectConfig)
	if errors.Is(err, libvirt.ErrNoMetadata) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return d.m.Declarations.Has(element, nic)
}

// storeSteps store a NIC that is plugged already.
func (d *domain) storeSteps(ctx context.Context, spec Spec, o *ours) ([]step.Step, error) {
	if err := d.storable(ctx); err != nil {
		return nil, err
	}
	nic := o.want.NIC
	isStored, err := d.storedAs(ctx, nic, o.want.MAC, o.Name)
	if err != nil {
		return nil, err
	}
	isDeclared, err := d.declares(ctx, nic)
	if err != nil {
		return nil, err
	}
	var list []step.Step
	if !isDeclared {
		spec.MAC, spec.Port = o.want.MAC, o.want.port()
		list = append(list, d.declareStep(spec))
	}
	if isStored {
		return list, nil
	}
	text, err := ethernet(o.want, o.Name)
	return append(list, step.Step{
		Name: "store",
		Text: fmt.Sprintf("libvirt: store %s with %s: %s", domainAlias(nic), d.dom.Name, text),
		Do:   func(ctx context.Context) error { return d.AttachDevice(ctx, d.dom, text, libvirt.AffectConfig) },
		Undo: func(ctx context.Context) error { return d.forget(ctx, nic) },
	}), err
}

// forgetSteps remove a NIC from what libvirt has stored, as far as it is there: its interface, and what is declared of it.
func (d *domain) forgetSteps(ctx context.Context, nic string) ([]step.Step, error) {
	stored, err := d.stored(ctx, nic)
	if err != nil {
		return nil, err
	}
	isDeclared, err := d.declares(ctx, nic)
	if err != nil {
		return nil, err
	}
	var list []step.Step
	if stored != nil {
		list = append(list, step.Step{
			Name: "forget",
			Text: fmt.Sprintf("libvirt: detach %s from what is stored of %s", domainAlias(nic), d.dom.Name),
			Do:   func(ctx context.Context) error { return d.forget(ctx, nic) },
		})
	}
	if isDeclared {
		list = append(list, d.editStep("undeclare", fmt.Sprintf("libvirt: metadata of %s: no NIC %s", d.dom.Name, nic),
			func(element string) (string, error) { return d.m.Declarations.Remove(element, nic) }))
	}
	return list, nil
}

// forget removes the NIC from what libvirt has stored; none is success.
func (d *domain) forget(ctx context.Context, nic string) error {
	err := d.DetachDeviceAlias(ctx, d.dom, domainAlias(nic), libvirt.AffectConfig)
	if err == nil {
		return nil
	}
	if x, readErr := d.stored(ctx, nic); readErr == nil && x == nil { // 9.0 has no code of its own for that
		return nil
	}
	return err
}
