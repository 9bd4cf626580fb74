package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// detachment is a detach under way, whose guest is locked.
type detachment struct {
	m       *Manager
	guest   *guest.Guest
	spec    DetachSpec
	dev     *inventory.Device // nil if its link is gone, or in another netns
	isCut   bool              // the host has disconnected it already
	notices []string
}

func (d *detachment) notice(format string, args ...any) {
	d.notices = append(d.notices, fmt.Sprintf(format, args...))
}

// steps detach the NIC. plugged reports whether the guest has its device.
func (d *detachment) steps(plugged bool) []step.Step {
	switch {
	case !plugged && d.dev == nil:
		return d.blindSteps()
	case !plugged:
		return d.m.andTidy(d.dev, d.releaseStep())
	case d.spec.Force:
		return d.forceSteps()
	}
	list := d.unplugSteps()
	if d.dev == nil {
		return list
	}
	if !d.dev.IsSocket() {
		list = append(list, d.goneStep())
	}
	switch {
	case isPortUnknown(d.dev):
		d.noticePort()
	case d.dev.Want.Switch:
		list = append(list, d.m.removePortStep("leave", d.dev))
	}
	return d.m.andTidy(d.dev, list...)
}

// andTidy adds to the steps that end a NIC the one that removes what it leaves on the host: a
// routed one leaves entries on its uplink, and perhaps settings; a shaped one its shaper; a port of
// Open vSwitch its row.
func (m *Manager) andTidy(dev *inventory.Device, steps ...step.Step) []step.Step {
	if dev != nil && dev.IsOVS() && !m.HasHelper() {
		steps = append(steps, m.leaveOVSStep(dev))
	}
	return m.andTidyHost(dev, steps...)
}

// andTidyHost is andTidy but for the row of Open vSwitch.
func (m *Manager) andTidyHost(dev *inventory.Device, steps ...step.Step) []step.Step {
	if dev == nil || !dev.Want.LeavesTraces() || m.HasHelper() {
		return steps
	}
	text := fmt.Sprintf("RTM_DELNEIGH of entries on %s that no NIC claims; settings back", dev.Want.Source)
	if !dev.IsRouted() {
		text = "RTM_DELLINK of ifb devices that shape no NIC"
	}
	return append(steps, step.Step{
		Name:  "tidy",
		Text:  text,
		Stage: nic.ErrLink,
		Do:    m.host.TidyHost,
	})
}

// isPortUnknown reports whether none of the switches that were asked is known to be the NIC's: its
// guest is another user's, and the switch has ended or is that user's own.
func isPortUnknown(dev *inventory.Device) bool {
	return dev.IsSocket() && errors.Is(dev.SwitchPort.Err, inventory.ErrNotAsked)
}

func (d *detachment) noticePort() {
	d.notice("its port stays in switch %s until the guest ends: %v", d.dev.Want.Source, d.dev.SwitchPort.Err)
}

// blindSteps remove a netdev whose tap was deleted: neither link nor device shows that one. libvirt
// removes it with the device.
func (d *detachment) blindSteps() []step.Step {
	netdev := qmp.NetdevID(nic.DeviceID(d.spec.NIC))
	return []step.Step{{
		Name:  "netdev_del",
		Text:  fmt.Sprintf("neither link nor device is there: netdev_del %s, if that is", netdev),
		Stage: nic.ErrHandover,
		Do:    d.removeNetdev,
	}}
}

func (d *detachment) removeNetdev(ctx context.Context) error {
	if d.guest.Monitor == nil {
		return nil
	}
	return d.guest.Monitor.RemoveNetdev(ctx, d.spec.NIC)
}

// releaseStep completes an interrupted detach, or undoes an interrupted attach.
func (d *detachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("the guest has no device %s: release its netdev and fds", nic.DeviceID(d.spec.NIC)),
		Do: func(ctx context.Context) error {
			if err := d.m.checkReleasable(ctx, d.dev, d.guest); err != nil {
				return err
			}
			return d.m.release(ctx, d.guest, d.dev)
		},
	}
}

// markStep marks the NIC as being detached, in its alias. The undo removes the mark, unless *keep
// is true by then.
func (m *Manager) markStep(dev *inventory.Device, keep *bool) step.Step {
	former := unmarked(dev)
	r := dev.Want
	r.Phase = nic.PhaseDetaching
	alias, err := r.Encode()
	return step.Step{
		Name: "mark",
		Text: fmt.Sprintf("alias of %s: %q", dev.Name, alias),
		Do: func(ctx context.Context) error {
			if err != nil {
				return err
			}
			return m.host.SetAlias(ctx, dev, alias)
		},
		Undo: func(ctx context.Context) error {
			if *keep {
				return nil
			}
			return rtnl.IgnoreNotExist(m.host.SetAlias(ctx, dev, former))
		},
	}
}

// unmarked returns the alias without the mark of an earlier detach, which has ended if the guest
// now refuses. The mark of a NIC that was cut off stays: reconcile would connect it again.
func unmarked(dev *inventory.Device) string {
	if isMarked(dev) && dev.HasLink() && (dev.Up || dev.Want.Prepared) {
		r := dev.Want
		r.Phase = nic.PhasePlugged
		if r.Former != "" { // a set that moves it was cut short before
			r.Phase = nic.PhaseChanging
		}
		if alias, err := r.Encode(); err == nil {
			return alias
		}
	}
	return dev.Alias
}

// isMarked reports whether an earlier detach of the NIC has not ended.
func isMarked(dev *inventory.Device) bool {
	return dev != nil && dev.Want.Phase == nic.PhaseDetaching
}

// unplugSteps mark the NIC, and wait until the guest has released it. After a timeout, Ctrl-C or a
// lost monitor the mark stays: the guest may still release the device. After a refusal it is
// undone.
func (d *detachment) unplugSteps() []step.Step {
	isAsked, stillPending := isMarked(d.dev), false
	unplug := step.Step{
		Name:  "unplug",
		Text:  d.guest.UnplugText(d.spec.NIC),
		Stage: nic.ErrHandover,
		Do: func(ctx context.Context) error {
			err := d.m.removeReleased(d.dev, d.guest.PID(), func() error {
				return d.guest.Unplug(ctx, d.spec.NIC, func(elapsed time.Duration) {
					isAsked = true
					d.m.progress("waited %.0f s for the guest to release %s", elapsed.Seconds(), d.spec.NIC)
				})
			})
			stillPending = !isRefusal(err, isAsked)
			return explainUnreleased(ctx, err)
		},
	}
	if !d.m.mayChange(d.dev) || isPortUnknown(d.dev) {
		return []step.Step{unplug}
	}
	return []step.Step{d.m.markStep(d.dev, &stillPending), unplug}
}

// isRefusal reports whether an unplug has failed so that the guest will not release the device: it
// has refused, or QEMU or libvirt has refused to ask it, as during a migration. isAsked reports
// that an earlier request may have reached the guest; the refusal of a later one does not cancel
// it.
func isRefusal(err error, isAsked bool) bool {
	switch {
	case errors.Is(err, qmp.ErrGuestRefused):
		return true
	case isAsked || errors.Is(err, qmp.ErrClosed):
		return false
	}
	var byQEMU *qmp.Error
	var byLibvirt *libvirt.Error
	return errors.As(err, &byQEMU) && byQEMU.Command == "device_del" || errors.As(err, &byLibvirt)
}

// explainUnreleased adds the cure to the error of a guest that has not released a NIC in time.
// After Ctrl-C it does not ask for the guest's reason: the guest may have had too little time.
func explainUnreleased(ctx context.Context, err error) error {
	const cure = "the guest keeps the device until then; try again, or cut it off with --force"
	switch {
	case !errors.Is(err, qmp.ErrUnplugTimeout):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w (is the guest still booting, paused or without ACPI? %s)", err, cure)
	}
	return fmt.Errorf("%w (%s)", err, cure)
}

// goneStep ends with the host interface gone: with the process that held it, or removed if it
// outlives that.
func (d *detachment) goneStep() step.Step {
	dev := d.dev
	if dev.StaysBehind() {
		return step.Step{
			Name: "delete",
			Text: fmt.Sprintf("wait until nobody holds %s; RTM_DELLINK", dev.Name),
			Do:   func(ctx context.Context) error { return d.m.host.RemoveNamed(ctx, dev.Link) },
		}
	}
	return step.Step{
		Name: "gone",
		Text: fmt.Sprintf("wait until %s is gone", dev.Name),
		Do:   func(ctx context.Context) error { return d.m.host.WaitGone(ctx, dev) },
	}
}

// removePortStep removes the port from its switch, which does not notice that QEMU has closed its
// end of a socket.
func (m *Manager) removePortStep(name string, dev *inventory.Device) step.Step {
	return step.Step{
		Name:  name,
		Text:  dev.SwitchPortText(),
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return m.host.DisconnectSwitch(ctx, dev) },
	}
}

// cutSteps mark the NIC and end all its traffic on the host's side, whatever QEMU and the guest do.
// The mark stays once that has begun: the NIC does not work any more.
func (m *Manager) cutSteps(dev *inventory.Device) []step.Step {
	begun := isMarked(dev)
	var cut step.Step
	if dev.IsSocket() {
		cut = m.removePortStep("cut", dev)
	} else {
		cut = m.downStep(dev)
	}
	do := cut.Do
	cut.Do = func(ctx context.Context) error {
		begun = true
		return do(ctx)
	}
	list := []step.Step{m.markStep(dev, &begun), cut}
	switch {
	case dev.IsRouted():
		return m.andTidy(dev, list...)
	case dev.IsOVS():
		return append(list, m.leaveOVSStep(dev))
	}
	return list // a shaper is used until the device goes
}

// leaveOVSStep removes the port of Open vSwitch, whose row outlives the tap.
func (m *Manager) leaveOVSStep(dev *inventory.Device) step.Step {
	return step.Step{
		Name:  "leave",
		Text:  fmt.Sprintf("OVSDB transact: delete Port %s of %s", dev.Name, dev.Want.Source),
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return m.host.LeaveOVS(ctx, dev) },
	}
}

func (m *Manager) downStep(dev *inventory.Device) step.Step {
	return step.Step{
		Name: "cut",
		Text: fmt.Sprintf("RTM_SETLINK %s: down, no master", dev.Name),
		Do: func(context.Context) error {
			err := m.host.Set(dev, rtnl.Up(false))
			if dev.Port != nil {
				err = errors.Join(err, bridges.RemovePort(m.host.NL, dev.Link))
			}
			return err
		},
	}
}

// forceSteps disconnect the NIC on the host's side first, then in QEMU, without waiting for the
// guest.
func (d *detachment) forceSteps() []step.Step {
	id := nic.DeviceID(d.spec.NIC)
	var list []step.Step
	tidy := d.m.andTidy
	switch {
	case d.isCut:
	case d.dev != nil && d.dev.IsSocket() && d.dev.SwitchPort.Err != nil: // QEMU's end is removed all the same
		d.noticePort()
	case d.m.mayChange(d.dev):
		list = append(list, d.m.cutSteps(d.dev)...)
		tidy = d.m.andTidyHost // the row is removed with the traffic
	}
	list = append(list, step.Step{
		Name:  "netdev_del",
		Text:  fmt.Sprintf("device_del %s, without waiting; netdev_del %s", id, qmp.NetdevID(id)),
		Stage: nic.ErrHandover,
		Do: func(ctx context.Context) error {
			if err := d.guest.RequestUnplug(ctx, d.spec.NIC); err != nil {
				d.notice("the guest was not asked: %v", err)
			}
			return d.m.removeReleased(d.dev, d.guest.PID(), func() error { return d.removeNetdev(ctx) })
		},
	}, step.Step{
		Name: "left",
		Text: "see what remains until the guest releases the device",
		Do:   d.noticeRest,
	})
	if d.dev != nil && d.dev.IsRouted() {
		return list
	}
	return tidy(d.dev, list...)
}

// forceWait is how long a forced detach waits for the tap to go by itself. QEMU 7.2 closes it with
// the netdev; newer ones only with the device.
const forceWait = 500 * time.Millisecond

func (d *detachment) noticeRest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, forceWait)
	defer cancel()
	if d.dev != nil {
		if err := d.m.host.WaitGone(ctx, d.dev); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		} else if err != nil {
			d.notice("%s stays, down and on no bridge, until the guest releases the device", d.dev.Name)
		}
	}
	has, err := d.guest.Has(ctx, d.spec.NIC)
	if has && err == nil {
		d.notice("the guest keeps the dead device %s until it releases it", nic.DeviceID(d.spec.NIC))
	}
	return nil
}
