package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// detachment is one detach under way, while its guest is locked.
type detachment struct {
	m       *Manager
	vm      vmm
	spec    DetachSpec
	link    *inventory.Device // nil where the tap is gone, or in another netns
	asked   bool              // the guest may let go of it at any time
	cut     bool              // it is cut off on our side already
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
	if d.link != nil && !d.link.IsSocket() {
		list = append(list, d.goneStep())
	}
	if d.unknownSeat() {
		d.tellSeat()
		return list
	}
	if d.link != nil && d.link.Want.Switch {
		list = append(list, d.leaveStep())
	}
	if d.mayChange() {
		list = append([]step.Step{d.markStep()}, list...)
	}
	return list
}

// unknownSeat tells that none of the switches that were asked is known to be the NIC's: its guest
// is another user's, and the switch has ended or is that user's own.
func (d *detachment) unknownSeat() bool {
	return d.link != nil && d.link.IsSocket() && errors.Is(d.link.SwitchPort.Err, inventory.ErrNotAsked)
}

func (d *detachment) tellSeat() {
	d.notices = append(d.notices, fmt.Sprintf("its port stays in switch %s until the guest ends: %v", d.link.Want.Source, d.link.SwitchPort.Err))
}

// mayChange tells whether there is a link that the caller has the right to change. Without, the
// guest and QEMU still let go of it, and so it goes.
func (d *detachment) mayChange() bool {
	return d.link != nil && !d.link.Deleted && d.m.mayChange(d.link)
}

// blindStep removes a netdev whose tap was deleted under it: nothing shows that one.
func (d *detachment) blindStep() step.Step {
	netdev := qmp.NetdevID(nic.DeviceID(d.spec.NIC))
	return step.Step{
		Name:  "netdev_del",
		Text:  fmt.Sprintf("neither link nor device is there: netdev_del %s, if that is", netdev),
		Stage: nic.ErrHandover,
		Do:    func(ctx context.Context) error { return d.vm.cutOff(ctx, d.spec.NIC) },
	}
}

// releaseStep finishes a detach, or takes back an attach, that was cut short.
func (d *detachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("the guest has no device %s: release its netdev and fds", nic.DeviceID(d.spec.NIC)),
		Do: func(ctx context.Context) error {
			if err := d.m.mayRelease(ctx, d.link, d.vm); err != nil {
				return err
			}
			return d.m.release(ctx, d.vm, d.link)
		},
	}
}

// markStep says in the alias what is under way. When the guest refuses, it is taken back.
func (d *detachment) markStep() step.Step {
	former := d.link.Alias
	r := d.link.Want
	r.Phase = nic.PhaseDetaching
	alias, err := r.Encode()
	return step.Step{
		Name: "mark",
		Text: fmt.Sprintf("alias of %s: %q", d.link.Name, alias),
		Do: func(ctx context.Context) error {
			if err != nil {
				return err
			}
			return d.m.host.SetAlias(ctx, d.link, alias)
		},
		Undo: func(ctx context.Context) error {
			if d.asked {
				return nil
			}
			return rtnl.IgnoreNotExist(d.m.host.SetAlias(ctx, d.link, former))
		},
	}
}

func (d *detachment) unplugStep() step.Step {
	return step.Step{
		Name: "unplug",
		Text: d.vm.unplugText(d.spec.NIC),
		Do: func(ctx context.Context) error {
			err := d.m.letGo(d.link, d.vm.process(), func() error {
				return d.vm.unplug(ctx, d.spec.NIC, func(elapsed time.Duration) {
					d.m.progress("waiting for the guest to let go of %s for %.0f s", d.spec.NIC, elapsed.Seconds())
				})
			})
			var refusal *qmp.Error // QEMU itself did not pass it on, as during a migration
			d.asked = !errors.Is(err, qmp.ErrGuestRefused) && !errors.As(err, &refusal)
			if errors.Is(err, qmp.ErrUnplugTimeout) {
				err = fmt.Errorf("%w (the NIC works until then; try again, or cut it off with --force)", err)
			}
			return step.WithStage(nic.ErrHandover, err)
		},
	}
}

// goneStep ends with the device gone: with what held it, or where that does not take it along, by
// us.
func (d *detachment) goneStep() step.Step {
	if l := d.link; l.StaysBehind() {
		return step.Step{
			Name: "delete",
			Text: fmt.Sprintf("wait until nobody holds %s; RTM_DELLINK", l.Name),
			Do:   func(ctx context.Context) error { return d.m.host.RemoveNamed(ctx, l.Link) },
		}
	}
	return step.Step{
		Name: "gone",
		Text: fmt.Sprintf("wait until %s is gone", d.link.Name),
		Do:   func(ctx context.Context) error { return d.m.host.WaitGone(ctx, d.link) },
	}
}

// leaveStep removes the port from its switch, which does not hear that QEMU has closed its end of a
// socket.
func (d *detachment) leaveStep() step.Step {
	return step.Step{
		Name:  "leave",
		Text:  d.link.SwitchPortText(),
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return d.m.host.DisconnectSwitch(ctx, d.link) },
	}
}

// forceWait is how long a forced detach watches for the tap to go by itself.
// QEMU 7.2 closes it with the netdev; newer ones only with the device.
const forceWait = 500 * time.Millisecond

// cutStep ends all traffic on our side, whatever QEMU and the guest do.
func (d *detachment) cutStep() step.Step {
	l := d.link
	if l.IsSocket() {
		return d.cutSocketStep()
	}
	return step.Step{
		Name: "cut",
		Text: fmt.Sprintf("RTM_SETLINK %s: down, no master", l.Name),
		Do: func(context.Context) error {
			err := d.m.host.Set(l, rtnl.Up(false))
			if l.Port != nil {
				err = errors.Join(err, bridges.RemovePort(d.m.host.NL, l.Link))
			}
			d.asked = true // the mark stays: this is no working NIC any more
			return err
		},
	}
}

// cutSocketStep takes the port from the switch.
func (d *detachment) cutSocketStep() step.Step {
	s := d.leaveStep()
	leave := s.Do
	s.Name = "cut"
	s.Do = func(ctx context.Context) error {
		d.asked = true
		return leave(ctx)
	}
	return s
}

func (d *detachment) forceSteps() []step.Step {
	id := nic.DeviceID(d.spec.NIC)
	var list []step.Step
	switch {
	case d.cut: // already
	case d.link != nil && d.link.IsSocket() && d.link.SwitchPort.Err != nil: // QEMU's end is cut off all the same
		d.tellSeat()
	case d.mayChange():
		list = append(list, d.markStep(), d.cutStep())
	}
	return append(list, step.Step{
		Name: "netdev_del",
		Text: fmt.Sprintf("device_del %s, without waiting; netdev_del %s", id, qmp.NetdevID(id)),
		Do: func(ctx context.Context) error {
			if err := d.vm.request(ctx, d.spec.NIC); err != nil {
				d.notices = append(d.notices, fmt.Sprintf("the guest was not asked: %v", err))
			}
			return step.WithStage(nic.ErrHandover, d.m.letGo(d.link, d.vm.process(), func() error { return d.vm.cutOff(ctx, d.spec.NIC) }))
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
		if err := d.m.host.WaitGone(ctx, d.link); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		} else if err != nil {
			d.notices = append(d.notices, fmt.Sprintf("%s stays, down and on no bridge, until the guest lets go of the device", d.link.Name))
		}
	}
	has, err := d.vm.has(ctx, d.spec.NIC)
	if has && err == nil {
		d.notices = append(d.notices, fmt.Sprintf("the guest keeps the dead device %s until it lets go of it", nic.DeviceID(d.spec.NIC)))
	}
	return nil
}
