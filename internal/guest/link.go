package guest

import (
	"context"
	"fmt"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// ChangeSteps tell the guest, and libvirt, of a change of a NIC that is plugged. device is the name
// of its host interface.
func (g *Guest) ChangeSteps(ctx context.Context, device string, from, to nic.Record) ([]step.Step, error) {
	if g.Domain != nil {
		return g.Domain.changeSteps(ctx, device, from, to)
	}
	unfinished := from.Phase == nic.PhaseChanging // what the guest has learned is not known
	if from.LinkDown == to.LinkDown && !unfinished {
		return nil, nil
	}
	return []step.Step{g.Monitor.linkStep(from, to)}, nil
}

// linkStep sets whether the guest sees a carrier.
func (m *Monitor) linkStep(from, to nic.Record) step.Step {
	id := qmp.NetdevID(nic.DeviceID(to.NIC))
	return step.Step{
		Name: "set_link",
		Text: qmp.SetLinkCommand(id, !to.LinkDown),
		Do:   func(ctx context.Context) error { return m.conn.SetLink(ctx, id, !to.LinkDown) },
		Undo: func(ctx context.Context) error { return m.conn.SetLink(ctx, id, !from.LinkDown) },
	}
}

// GiveLabel has QEMU hold a label of the NIC in place of the one that it was given by this monitor.
func (m *Monitor) GiveLabel(ctx context.Context, nicID, text string) error {
	f, err := procfd.NewLabel(text)
	if err != nil {
		return err
	}
	defer f.Close()
	return m.conn.GetFD(ctx, qmp.LabelName(nic.DeviceID(nicID)), f)
}

// Announce has the guest announce where it is. Only QEMU can ask it, and only by its own monitor.
func (g *Guest) Announce(ctx context.Context, nicID string) error {
	if g.Monitor == nil {
		return nil
	}
	return g.Monitor.conn.AnnounceSelf(ctx, nic.DeviceID(nicID))
}

// changeSteps have libvirt follow a change, in the running definition and in what it stores: the
// state of the link is in the NIC's interface, its place and port in what the domain declares.
func (d *Domain) changeSteps(ctx context.Context, device string, from, to nic.Record) (list []step.Step, err error) {
	unfinished := from.Phase == nic.PhaseChanging
	if raises, err := onlyRaises(from, to); err != nil || raises && !unfinished {
		return nil, err
	}
	declare, err := d.redeclare(ctx, to)
	if err != nil {
		return nil, err
	}
	list = append(list, declare...)
	if from.LinkDown == to.LinkDown && !unfinished {
		return list, nil
	}
	live, err := d.updateStep("update-device", libvirt.AffectLive, from, to, func(r nic.Record) (string, error) {
		return ethernet(r, device).XML()
	})
	if err != nil {
		return nil, err
	}
	list = append(list, live)
	stored, err := d.stored(ctx, to.NIC)
	if err != nil || stored == nil {
		return list, err
	}
	config, err := d.updateStep("update-device stored", libvirt.AffectConfig, from, to,
		func(r nic.Record) (string, error) {
			x := ethernet(r, stored.Target)
			x.Managed = !stored.Unmanaged
			x.Parent, x.Mode = stored.Source.Device, stored.Source.Mode
			return x.XML()
		})
	return append(list, config), err
}

// onlyRaises reports whether a change is the commit of a NIC, of which libvirt knows nothing.
func onlyRaises(from, to nic.Record) (bool, error) {
	if !from.Prepared || to.Prepared {
		return false, nil
	}
	from.Prepared = false
	was, err := from.AsPlugged().Encode()
	if err != nil {
		return false, err
	}
	is, err := to.AsPlugged().Encode()
	return was == is, err
}

// updateStep updates the NIC's interface in one definition. text returns its XML for a record.
func (d *Domain) updateStep(name string, in libvirt.Affect, from, to nic.Record,
	text func(nic.Record) (string, error),
) (step.Step, error) {
	was, err := text(from)
	if err != nil {
		return step.Step{}, err
	}
	is, err := text(to)
	return step.Step{
		Name: name,
		Text: fmt.Sprintf("libvirt: update %s of %s: %s", nic.LibvirtAlias(to.NIC), d.dom.Name, is),
		Do: func(ctx context.Context) error {
			return explainRefusal(d.UpdateDevice(ctx, d.dom, is, in))
		},
		Undo: func(ctx context.Context) error { return explainStopped(d.UpdateDevice(ctx, d.dom, was, in)) },
	}, err
}

// redeclare declares the NIC as its new record says, wherever it is declared otherwise. What the
// record does not have stays as it is declared.
func (d *Domain) redeclare(ctx context.Context, to nic.Record) (list []step.Step, err error) {
	for _, in := range []libvirt.Affect{libvirt.AffectLive, libvirt.AffectConfig} {
		isDeclared, err := d.declares(ctx, to.NIC, in)
		if err != nil {
			return nil, err
		}
		if !isDeclared {
			continue
		}
		element, err := d.Metadata(ctx, d.dom, declared.Namespace, in)
		if err != nil {
			return nil, explainStopped(err)
		}
		edited, err := redeclared(element, to)
		if err != nil {
			return nil, err
		}
		if edited == element {
			continue
		}
		name := "declare"
		if in == libvirt.AffectConfig {
			name = "declare stored"
		}
		list = append(list, d.editStep(name,
			fmt.Sprintf("libvirt: metadata of %s: NIC %s as it is now", d.dom.Name, to.NIC), []libvirt.Affect{in},
			func(element string) (string, error) { return redeclared(element, to) }))
	}
	return list, nil
}

func redeclared(element string, to nic.Record) (string, error) {
	spec, err := completed(element, to)
	if err != nil {
		return "", err
	}
	return declared.Declare(element, spec)
}

// completed returns the request for a NIC with that record, with the options of its parent device
// that the element declares.
func completed(element string, r nic.Record) (nic.Spec, error) {
	former, err := declared.Of(element, r.NIC)
	spec := r.Spec()
	if spec.Lower != nil && former.Lower != nil {
		lower := *former.Lower
		lower.Mode, lower.RxFilter = spec.Lower.Mode, spec.Lower.RxFilter
		spec.Lower = &lower
	}
	return spec, err
}
