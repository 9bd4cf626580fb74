package tapmgr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

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
		return step.WithStage(nic.ErrInvalid, fmt.Errorf("domain %s is transient, libvirt stores nothing of it (without --persistent)", d.dom.Name))
	}
	return nil
}

// stored is a NIC as libvirt has stored it; nil for none.
func (d *domain) stored(ctx context.Context, nicID string) (*domainxml.Interface, error) {
	if persistent, err := d.IsPersistent(ctx, d.dom); err != nil || !persistent {
		return nil, err
	}
	text, err := d.XML(ctx, d.dom, libvirt.XMLInactive)
	if err != nil {
		return nil, err
	}
	def, err := domainxml.Parse(text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(def.Interfaces, func(i domainxml.Interface) bool { return i.Alias == nic.LibvirtAlias(nicID) })
	if i < 0 {
		return nil, nil
	}
	return &def.Interfaces[i], nil
}

// storedAs reports whether libvirt has stored the NIC already, for that device or one that libvirt
// names itself. Another of its id is an error that Is ErrExist.
func (d *domain) storedAs(ctx context.Context, r nic.Record, device string) (bool, error) {
	x, err := d.stored(ctx, r.NIC)
	if err != nil || x == nil {
		return false, err
	}
	if !bytes.Equal(x.MAC, r.MAC) || x.Target != device && (x.Target != "" || x.Unmanaged) {
		return false, fmt.Errorf("%w: libvirt has stored another NIC as %s, with MAC %s on %q (vmnet detach --persistent removes it)", nic.ErrExist, nic.LibvirtAlias(r.NIC), x.MAC, x.Target)
	}
	return true, nil
}

// keep decides what makes a NIC come back: declare for a guest that is restored, and where the Spec
// is Persistent both for each start. declare comes before its interface, store after it. What is
// kept of one that is plugged already stays as it is.
func (d *domain) keep(ctx context.Context, spec nic.Spec, r nic.Record, device string, isPlugged bool) (declare, store []step.Step, err error) {
	in := []libvirt.Affect{libvirt.AffectLive}
	if spec.Persistent {
		if err := d.storable(ctx); err != nil {
			return nil, nil, err
		}
		isStored, err := d.storedAs(ctx, r, device)
		if err != nil {
			return nil, nil, err
		}
		if !isStored {
			s, err := d.storeStep(spec, r, device)
			if err != nil {
				return nil, nil, err
			}
			store = append(store, s)
		}
		in = append(in, libvirt.AffectConfig)
	}
	if isPlugged {
		if in, err = d.missing(ctx, r.NIC, in); err != nil {
			return nil, nil, err
		}
	}
	if len(in) > 0 {
		spec.Port = r.PortConfig()
		declare = append(declare, d.declareStep(spec, in))
	}
	return declare, store, nil
}

// storeStep has libvirt store a NIC.
func (d *domain) storeStep(spec nic.Spec, r nic.Record, device string) (step.Step, error) {
	text, err := storedXML(spec, r, device)
	return step.Step{
		Name: "store",
		Text: fmt.Sprintf("libvirt: store %s with %s: %s", nic.LibvirtAlias(r.NIC), d.dom.Name, text),
		Do:   func(ctx context.Context) error { return d.AttachDevice(ctx, d.dom, text, libvirt.AffectConfig) },
		Undo: func(ctx context.Context) error { return d.forget(ctx, r.NIC) },
	}, err
}

// forgetSteps remove what makes a NIC come back, as far as it is there: what is declared of it in
// the running definition and, where that is asked for, all that is stored of it.
func (d *domain) forgetSteps(ctx context.Context, nicID string, persistent bool) ([]step.Step, error) {
	var list []step.Step
	if persistent {
		stored, err := d.stored(ctx, nicID)
		if err != nil {
			return nil, err
		}
		if stored != nil {
			list = append(list, step.Step{
				Name: "forget",
				Text: fmt.Sprintf("libvirt: detach %s from what is stored of %s", nic.LibvirtAlias(nicID), d.dom.Name),
				Do:   func(ctx context.Context) error { return d.forget(ctx, nicID) },
			})
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

// forget removes the NIC from what libvirt has stored; none is success.
func (d *domain) forget(ctx context.Context, nicID string) error {
	err := d.DetachDeviceAlias(ctx, d.dom, nic.LibvirtAlias(nicID), libvirt.AffectConfig)
	if err == nil {
		return nil
	}
	if x, readErr := d.stored(ctx, nicID); readErr == nil && x == nil { // 9.0 has no code of its own for that
		return nil
	}
	return err
}
