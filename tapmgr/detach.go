package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/bridge"
	"vmnet/internal/qemu"
	"vmnet/internal/rtnl"
	"vmnet/internal/step"
	"vmnet/qmp"
)

// DetachSpec says which NIC a guest should lose.
type DetachSpec struct {
	Target
	NIC string
	// Force cuts the NIC off at once instead of waiting for the guest, which then
	// keeps a dead device until it lets go of it.
	Force bool
}

// DetachResult is what Detach did.
type DetachResult struct {
	Changed bool     // false where there was nothing to detach
	Notices []string // what a person should know, though it is no error
}

// Detach takes a NIC away: it asks the guest, waits until that has let go of it or
// ctx ends, then removes QEMU's end, with which the tap goes. What is gone
// already is success. A guest that refuses, or does not answer, keeps a working NIC.
func (m *Manager) Detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	if err := errors.Join(ValidVM(spec.VM), ValidNIC(spec.NIC)); err != nil {
		return DetachResult{}, in(ErrInvalid, err)
	}
	res, err := m.detach(ctx, spec)
	if err != nil {
		return res, fmt.Errorf("detach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	link, err := m.find(spec.VM, spec.NIC)
	if err != nil {
		return DetachResult{}, err
	}
	vm, err := m.openHolder(ctx, spec.Target, link)
	if errors.Is(err, qemu.ErrNotFound) {
		return m.detachDead(ctx, spec, link)
	}
	if err != nil {
		return DetachResult{}, err
	}
	defer vm.Close()

	d := &detachment{m: m, vm: vm, spec: spec}
	if d.link, err = m.find(spec.VM, spec.NIC); err != nil { // again, now that the guest is locked
		return DetachResult{}, err
	}
	device, err := vm.HasDevice(ctx, deviceID(spec.NIC))
	if err != nil {
		return DetachResult{}, in(ErrHandover, err)
	}
	err = m.run(ctx, d.steps(device))
	if errors.Is(err, qmp.ErrClosed) && d.wentWithGuest(ctx) {
		d.notices, err = append(d.notices, "the guest ended meanwhile, and the NIC with it"), nil
	}
	return DetachResult{Changed: d.link != nil || device, Notices: d.notices}, err
}

// wentWithGuest tells whether the guest has ended, and so nothing is left to detach.
func (d *detachment) wentWithGuest(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWait)
	defer cancel()
	if _, err := qemu.ByPID(d.vm.pid); !errors.Is(err, qemu.ErrNotFound) {
		return false
	}
	return d.link == nil || d.m.waitGone(ctx, d.link) == nil
}

// openHolder opens the guest that holds the link, which is surer than one of
// that name; without a link, or where no holder is seen, the one that is named.
func (m *Manager) openHolder(ctx context.Context, t Target, link *ours) (*vm, error) {
	if link != nil && t.PID == 0 && t.QMP == "" {
		if link.unheld() {
			return nil, fmt.Errorf("%w: nobody holds %s", qemu.ErrNotFound, link.Name)
		}
		t.PID = link.vmm()
	}
	return m.open(ctx, t)
}

// detachDead detaches from a guest that is not there (any more): at most its link is.
func (m *Manager) detachDead(ctx context.Context, spec DetachSpec, link *ours) (DetachResult, error) {
	if link == nil {
		return DetachResult{Notices: []string{fmt.Sprintf("nothing to do: no guest %q runs, and no link is its %s", spec.VM, spec.NIC)}}, nil
	}
	err := m.run(ctx, []step.Step{m.deleteStep(link)})
	return DetachResult{Changed: true}, err
}

// deleteStep deletes a link that nobody holds.
func (m *Manager) deleteStep(o *ours) step.Step {
	return step.Step{
		Name: "delete",
		Text: fmt.Sprintf("RTM_DELLINK %s, which nobody holds", o.Name),
		Do: func(ctx context.Context) error {
			now, err := m.find(o.want.VM, o.want.NIC)
			if err != nil || now == nil {
				return err
			}
			if !now.unheld() || o.in != nil { // QEMU would spin on a tap that is deleted under it
				return fmt.Errorf("%w: interface %s", ErrInUse, o.Name)
			}
			return m.nl.Delete(o.Index)
		},
	}
}

// detachment is one detach under way, while its guest is locked.
type detachment struct {
	m       *Manager
	vm      *vm
	spec    DetachSpec
	link    *ours // nil where the tap is gone, or in another netns
	asked   bool  // the guest may let go of it at any time
	notices []string
}

func (d *detachment) steps(device bool) []step.Step {
	switch {
	case !device && d.link == nil:
		return []step.Step{d.blindStep()}
	case !device:
		return []step.Step{d.releaseStep()}
	case d.spec.Force:
		return d.forceSteps()
	}
	list := []step.Step{d.unplugStep()}
	if d.link != nil {
		list = append([]step.Step{d.markStep()}, append(list, d.goneStep())...)
	}
	return list
}

// blindStep removes a netdev whose tap was deleted under it: nothing shows that one.
func (d *detachment) blindStep() step.Step {
	netdev := qmp.NetdevID(deviceID(d.spec.NIC))
	return step.Step{
		Name: "netdev_del",
		Text: fmt.Sprintf("neither link nor device is there: netdev_del %s, if that is", netdev),
		Do:   func(ctx context.Context) error { return in(ErrHandover, d.vm.Release(ctx, deviceID(d.spec.NIC))) },
	}
}

// releaseStep finishes a detach, or takes back an attach, that was cut short.
func (d *detachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("the guest has no device %s: release its netdev and fds", deviceID(d.spec.NIC)),
		Do: func(ctx context.Context) error {
			if err := d.m.mayRelease(d.link, d.vm.pid); err != nil {
				return err
			}
			return d.m.release(ctx, d.vm, d.link)
		},
	}
}

// markStep says in the alias what is under way. When the guest refuses, it is taken back.
func (d *detachment) markStep() step.Step {
	former := d.link.Alias
	r := d.link.want
	r.Phase = detaching
	alias, err := r.encode()
	return step.Step{
		Name: "mark",
		Text: fmt.Sprintf("RTM_SETLINK %s: alias %q", d.link.Name, alias),
		Do: func(context.Context) error {
			if err != nil {
				return err
			}
			return d.m.set(d.link, rtnl.Alias(alias))
		},
		Undo: func(context.Context) error {
			if d.asked {
				return nil
			}
			return gone(d.m.set(d.link, rtnl.Alias(former)))
		},
	}
}

func (d *detachment) unplugStep() step.Step {
	id := deviceID(d.spec.NIC)
	return step.Step{
		Name: "unplug",
		Text: fmt.Sprintf("device_del %s, again each second until the guest lets go of it; netdev_del %s", id, qmp.NetdevID(id)),
		Do: func(ctx context.Context) error {
			err := d.vm.Unplug(ctx, id, func(elapsed time.Duration) {
				d.m.progress("waiting for the guest to let go of %s for %.0f s", d.spec.NIC, elapsed.Seconds())
			})
			if d.asked = !errors.Is(err, qmp.ErrGuestRefused); errors.Is(err, qmp.ErrUnplugTimeout) {
				err = fmt.Errorf("%w (the NIC works until then; try again, or cut it off with --force)", err)
			}
			return in(ErrHandover, err)
		},
	}
}

func (d *detachment) goneStep() step.Step {
	return step.Step{
		Name: "gone",
		Text: fmt.Sprintf("wait until %s is gone", d.link.Name),
		Do:   func(ctx context.Context) error { return d.m.waitGone(ctx, d.link) },
	}
}

// forceWait is how long a forced detach watches for the tap to go by itself.
// QEMU 7.2 closes it with the netdev; newer ones only with the device.
const forceWait = 500 * time.Millisecond

// forceSteps cut the NIC off on our side first, so that no frame passes whatever
// QEMU and the guest do.
func (d *detachment) forceSteps() []step.Step {
	id := deviceID(d.spec.NIC)
	var list []step.Step
	if l := d.link; l != nil {
		list = append(list, d.markStep(), step.Step{
			Name: "cut",
			Text: fmt.Sprintf("RTM_SETLINK %s: down, no master", l.Name),
			Do: func(context.Context) error {
				err := d.m.set(l, rtnl.Up(false))
				if l.Port != nil {
					err = errors.Join(err, bridge.RemovePort(d.m.nl, l.Link))
				}
				return err
			},
		})
	}
	return append(list, step.Step{
		Name: "netdev_del",
		Text: fmt.Sprintf("device_del %s, without waiting; netdev_del %s", id, qmp.NetdevID(id)),
		Do: func(ctx context.Context) error {
			if err := d.vm.RequestUnplug(ctx, id); err != nil {
				return in(ErrHandover, err)
			}
			return in(ErrHandover, d.vm.Release(ctx, id))
		},
	}, step.Step{
		Name: "left",
		Text: "see what remains until the guest lets go of the device",
		Do:   d.tellLeft,
	})
}

func (d *detachment) tellLeft(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, forceWait)
	defer cancel()
	if d.link != nil {
		if err := d.m.waitGone(ctx, d.link); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		} else if err != nil {
			d.notices = append(d.notices, fmt.Sprintf("%s stays, down and on no bridge, until the guest lets go of the device", d.link.Name))
		}
	}
	has, err := d.vm.HasDevice(ctx, deviceID(d.spec.NIC))
	if has && err == nil {
		d.notices = append(d.notices, fmt.Sprintf("the guest keeps the dead device %s until it lets go of it", deviceID(d.spec.NIC)))
	}
	return nil
}

// releaseWait bounds how long a released tap may take to go.
const releaseWait = 5 * time.Second

// release makes QEMU let go of a tap that is not plugged, and waits until it is
// gone. The caller has made sure that nobody else holds it.
func (m *Manager) release(ctx context.Context, vm *vm, o *ours) error {
	if err := vm.Rollback(ctx, deviceID(o.want.NIC), o.want.Queues); err != nil {
		return err
	}
	if now, err := m.find(o.want.VM, o.want.NIC); err != nil {
		return err
	} else if now != nil && now.unheld() {
		return gone(m.nl.Delete(o.Index)) // a persistent one
	}
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	return m.waitGone(ctx, o)
}
