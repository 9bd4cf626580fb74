package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/change"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Set changes a NIC of a running guest in place, as one transaction: if a step fails, the NIC is as
// it was. edit gets the NIC as it is, as a request ([nic.Record.Spec]), and returns it as it should
// be. What the guest would notice, such as its address or the model, cannot change: the error
// matches nic.ErrInvalid and says why. If the NIC is as it should be, nothing changes. A Set that
// was cut short is completed by the next one of that NIC, or by Reconcile.
//
// With a Run that calls no step, Set returns the changes that it would make.
func (m *Manager) Set(ctx context.Context, t nic.Target, nicID string,
	edit func(now nic.Spec) (nic.Spec, error),
) (nic.ChangeResult, error) {
	if err := errors.Join(nic.ValidVM(t.VM), nic.ValidNIC(nicID)); err != nil {
		return nic.ChangeResult{}, step.WithStage(nic.ErrInvalid, err)
	}
	res, err := m.set(ctx, t, nicID, edit)
	if err != nil {
		return res, fmt.Errorf("set %s/%s: %w", t.VM, nicID, err)
	}
	return res, nil
}

func (m *Manager) set(ctx context.Context, t nic.Target, nicID string,
	edit func(now nic.Spec) (nic.Spec, error),
) (res nic.ChangeResult, err error) {
	dev, err := m.host.Find(ctx, t, nicID)
	if err != nil {
		return res, err
	}
	if dev == nil {
		return res, fmt.Errorf("NIC %s: %w (vmnet list shows those that are there)", nicID, fs.ErrNotExist)
	}
	if dev.IsOpenedByName() {
		return res, fmt.Errorf("%w: its VMM opens it by its name, and has no monitor that vmnet asks "+
			"(once that has ended, make it as it should be with vmnet tap create)", nic.ErrInUse)
	}
	if err := guest.MayOpen(t, dev.Name, dev.VMMPID()); err != nil {
		return res, err
	}
	found, findErr := m.findHolder(t, dev)
	if findErr == nil {
		defer found.Close()
	}
	g, err := m.openFound(ctx, found, findErr, dev)
	if err != nil {
		return res, err
	}
	defer g.Close()
	if dev, err = m.findAgain(ctx, dev, nic.Target{VM: t.VM, PID: g.PID()}, nicID); err != nil {
		return res, err
	}
	if dev == nil {
		return res, fmt.Errorf("NIC %s: %w: it was detached meanwhile", nicID, fs.ErrNotExist)
	}
	if err := isHeldBy(dev, g.PID()); err != nil {
		return res, err
	}
	plugged, err := g.Has(ctx, nicID)
	switch {
	case err != nil:
		return res, step.WithStage(nic.ErrHandover, err)
	case !plugged, dev.Deleted, dev.Want.Phase != nic.PhasePlugged && !change.IsUnfinished(dev):
		return res, fmt.Errorf("%w: its state is %s (the same vmnet attach, or vmnet reconcile, first)",
			nic.ErrInUse, dev.NIC().State)
	case dev.Want.Prepared:
		return res, fmt.Errorf("%w: it is down until vmnet commit --vm %s --nic %s, and can be changed then",
			nic.ErrInUse, t.VM, nicID)
	case !m.hasPrivilege(dev):
		return res, step.WithStage(nic.ErrLink,
			fmt.Errorf("to change %s takes root (the same vmnet set as root)", dev.Name))
	}
	now := dev.Want.Spec()
	if g.Domain != nil {
		if now.Persistent, err = g.Domain.Stored(ctx, nicID); err != nil {
			return res, step.WithStage(nic.ErrHandover, err)
		}
	}
	spec, err := edit(now)
	if err != nil {
		return res, step.WithStage(nic.ErrInvalid, err)
	}
	p, err := change.New(ctx, m.host, g, dev, spec)
	if err != nil {
		return res, err
	}
	if len(p.Steps) > 0 {
		err = m.Run.Do(ctx, p.Steps)
	}
	res = nic.ChangeResult{Changes: p.Changes, Changed: len(p.Steps) > 0, Notices: p.Notices}
	if err != nil {
		return res, err
	}
	return m.changed(ctx, dev, res)
}

// changed adds to a result the NIC as it is now, and how it differs from its record.
func (m *Manager) changed(ctx context.Context, dev *inventory.Device, res nic.ChangeResult) (nic.ChangeResult, error) {
	now, err := m.host.Refresh(ctx, *dev)
	if err != nil {
		return res, err
	}
	res.NIC = now.NIC()
	v, err := m.host.View(&now)
	if err != nil {
		res.Notices = append(res.Notices, fmt.Sprintf("%s was not compared with what it should be: %v", now.Name, err))
	}
	for _, f := range v.Compare() {
		res.Differences = append(res.Differences, f.Difference(&now))
	}
	if text, cure := v.OffMap(); text != "" {
		res.Notices = append(res.Notices, fmt.Sprintf("%s (%s)", text, cure))
	}
	return res, nil
}
