package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/vmm/qemu"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Attach gives a running guest a NIC, or leaves nothing of it behind. The same Spec again succeeds
// without a change. Another one for the same NIC is an error that matches nic.ErrExist and names
// the differences. What an interrupted attach of the same NIC has left is removed first.
func (m *Manager) Attach(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	if err := cmp.Or(spec.Validate(), spec.CheckPlace()); err != nil {
		return nic.Result{}, err
	}
	requested := spec
	spec = spec.WithDefaults()
	res, err := m.attach(ctx, spec, requested)
	if err != nil {
		return nic.Result{}, fmt.Errorf("attach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

// attach attaches spec, which is requested with its defaults.
func (m *Manager) attach(ctx context.Context, spec, requested nic.Spec) (nic.Result, error) {
	found, err := m.finder().Find(spec.Target)
	if err != nil {
		return nic.Result{}, err
	}
	defer found.Close()
	if spec.Via, err = wayOf(spec, found.IsLibvirts(), m.HasHelper()); err != nil {
		if !found.IsLibvirts() && errors.Is(found.Missing(), qemu.ErrNotFound) {
			err = found.Missing()
		}
		return nic.Result{}, err
	}
	a, err := m.begin(ctx, spec, requested)
	if err != nil {
		return nic.Result{}, err
	}
	if a.guest, err = m.finder().Open(ctx, found, spec.Via); err != nil {
		return nic.Result{}, err
	}
	defer a.guest.Close()
	return a.run(ctx)
}

// wayOf decides how the guest gets the NIC: by its monitor, or a libvirt guest unless asked
// otherwise by libvirt.
func wayOf(spec nic.Spec, isLibvirts, hasHelper bool) (nic.Via, error) {
	switch {
	case spec.Prepared && (isLibvirts || hasHelper && !spec.NeedsNoDevice()):
		return "", mayNotPrepare(spec, isLibvirts)
	case !isLibvirts && (spec.Via != "" || spec.Persistent):
		return "",
			step.WithStage(nic.ErrInvalid,
				fmt.Errorf("guest %s is not libvirt's: --via and --persistent do not concern it", spec.VM))
	case !isLibvirts || spec.Via == nic.ViaMonitor:
		return spec.Via, nil
	case spec.Via == "" && spec.Switch != nil:
		return "",
			step.WithStage(nic.ErrInvalid,
				fmt.Errorf(
					"guest %s is libvirt's, which cannot plug a port of a userspace switch (--via monitor,%s hands it to QEMU, without libvirt's knowledge)",
					spec.VM, spec.Switch.By))
	}
	spec.Via = nic.ViaLibvirt
	if err := spec.CheckLibvirt(); err != nil {
		return "", step.WithStage(nic.ErrInvalid, err)
	}
	if hasHelper {
		return "",
			step.WithStage(nic.ErrLink,
				errors.New(
					"only root can hand libvirt a device by its name (--via monitor needs no root, and libvirt does not know the NIC then)"))
	}
	return spec.Via, nil
}

// mayNotPrepare returns why a NIC of the guest cannot be prepared, or not by this caller.
func mayNotPrepare(spec nic.Spec, isLibvirts bool) error {
	if isLibvirts {
		return step.WithStage(nic.ErrInvalid,
			fmt.Errorf("guest %s is libvirt's: its hook prepares the NICs that the domain declares, and commits them "+
				"(vmnet hook install; then virsh migrate)", spec.VM))
	}
	return step.WithStage(nic.ErrLink, errors.New("to prepare a NIC takes root, as the commit does "+
		"(on a switch, --via socket or --via vhost-user does not)"))
}

// attachment is an attach under way.
type attachment struct {
	*backend.NIC
	m         *Manager
	guest     *guest.Guest
	requested nic.Spec // without its defaults
	handover  guest.Handover
	made      *inventory.Device
}

// begin plans the host's half, whose errors need not wait for the guest.
func (m *Manager) begin(ctx context.Context, spec, requested nic.Spec) (*attachment, error) {
	a := &attachment{NIC: m.host.New(spec, nic.PhaseAttaching), m: m, requested: requested}
	err := a.PlanInterface(ctx)
	if now := m.renamed(ctx, spec, err); now != "" {
		a.NIC = m.host.New(spec.WithSource(now), nic.PhaseAttaching)
		a.Notices = append(a.Notices, fmt.Sprintf("%s is called %s now", spec.Source(), now))
		err = a.PlanInterface(ctx)
	}
	if err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	a.AnyModel = requested.Model == ""
	a.requested = requested.WithSource(a.Record.Source) // it may have been named by an altname
	return a, nil
}

// renamed returns the present name of the bridge or parent device that a Spec names as it was
// called when the guest got the NIC, if why, the error of a plan, is that there is no such device;
// otherwise it returns an empty string.
func (m *Manager) renamed(ctx context.Context, spec nic.Spec, why error) string {
	if !errors.Is(why, fs.ErrNotExist) {
		return ""
	}
	all, err := m.host.Named(ctx, spec.VM, spec.NIC)
	if err != nil {
		return ""
	}
	for _, dev := range all {
		if dev.FormerSource != "" && dev.FormerSource == spec.Source() && (spec.PID == 0 || dev.IsHeldBy(spec.PID)) {
			return dev.Want.Source
		}
	}
	return ""
}

// run attaches the NIC now that the guest is locked.
func (a *attachment) run(ctx context.Context) (nic.Result, error) {
	there, err := a.existing(ctx)
	if err != nil {
		return nic.Result{}, err
	}
	switch there.verdict {
	case asRequested:
		return a.repaired(ctx, there.dev)
	case disconnected: // it is replaced first, since it may have the only free place
		if err := a.m.Run.Do(ctx, []step.Step{a.replaceStep(there.dev)}); err != nil {
			return nic.Result{}, err
		}
	}
	if err := a.plan(ctx); err != nil {
		return nic.Result{}, err
	}
	list, err := a.steps()
	if err != nil {
		return nic.Result{}, err
	}
	if there.verdict == leftover {
		list = append([]step.Step{a.releaseStep(there.dev)}, list...)
	}
	if err := a.m.Run.Do(ctx, list); err != nil {
		return nic.Result{}, err
	}
	if a.Spec.Via == nic.ViaMonitor {
		a.Notices = append(a.Notices, costOfMonitor)
	}
	return a.Result(a.made, true), nil
}

// costOfMonitor is what the caller should know of a NIC that libvirt does not know.
const costOfMonitor = "libvirt does not know this NIC: it is not in the guest's XML, virsh does not show it, the guest cannot be migrated with it, and the domain is marked as tainted (custom-monitor)"

// plan decides everything that the steps need. It changes nothing.
func (a *attachment) plan(ctx context.Context) error {
	queues, err := a.queues(ctx)
	if err != nil {
		return err
	}
	if err := a.PlanDevice(queues); err != nil {
		return err
	}
	if a.handover, err = a.guest.Plan(ctx, a.NIC); err != nil {
		return step.WithStage(nic.ErrHandover, err)
	}
	a.Opener = a.handover.Opener
	a.Notices = append(a.Notices, a.handover.Notices...)
	return nil
}

func (a *attachment) queues(ctx context.Context) (int, error) {
	if a.Spec.Queues != nic.QueuesAuto {
		return a.Spec.Queues, nil
	}
	if !a.Spec.IsVirtio() || a.Record.Type == nic.TypeSocket {
		return 1, nil
	}
	cpus, err := a.guest.CPUs(ctx)
	if err != nil {
		return 0, step.WithStage(nic.ErrHandover, err)
	}
	return max(1, min(cpus, nic.MaxAutoQueues)), nil
}

// steps is an attach from the first device to the last check, in order. It is what a run does and
// undoes, a dry run prints, and tests break.
func (a *attachment) steps() ([]step.Step, error) {
	list, err := a.HostSteps(a.guest.PID())
	if err != nil {
		return nil, err
	}
	list = append(step.InStage(nic.ErrLink, list...), step.InStage(nic.ErrHandover, a.handover.Steps...)...)
	return append(list, a.verifyStep()), nil
}

// releaseStep removes what an interrupted attach has left.
func (a *attachment) releaseStep(left *inventory.Device) step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("remove what a crash left of %s in the guest", left.Name),
		Do:   func(ctx context.Context) error { return a.m.release(ctx, a.guest, left) },
	}
}

// replaceStep removes a NIC that is disconnected: QEMU's end of its socket cannot be given another
// peer.
func (a *attachment) replaceStep(dead *inventory.Device) step.Step {
	why := fmt.Sprintf("switch %s has lost %s", dead.Want.Source, dead.Name)
	if dead.Deleted {
		why = fmt.Sprintf("%s was deleted under the guest", dead.Name)
	}
	return step.Step{
		Name:  "replace",
		Text:  fmt.Sprintf("%s: %s", why, a.guest.UnplugText(a.Spec.NIC)),
		Stage: nic.ErrHandover,
		Do: func(ctx context.Context) error {
			return a.guest.Unplug(ctx, a.Spec.NIC, func(elapsed time.Duration) {
				a.m.progress("waited %.0f s for the guest to release the former %s", elapsed.Seconds(), a.Spec.NIC)
			})
		},
	}
}

// verifyStep reads back from the kernel what should be there, and only then says in the alias that
// the NIC is plugged.
func (a *attachment) verifyStep() step.Step {
	return step.Step{
		Name: "verify",
		Text: fmt.Sprintf("read the device back; set its alias %q", a.FinalAlias()),
		Do: func(ctx context.Context) error {
			made, err := a.Verify(ctx)
			if err != nil {
				return step.WithStage(nic.ErrLink, err)
			}
			if err := a.guest.Alive(); err != nil { // all steps have named it by its PID
				return step.WithStage(nic.ErrHandover, err)
			}
			a.made = made
			return nil
		},
	}
}

// ForwardWait bounds how long OVN may take to install the flows of a port.
const ForwardWait = backend.ForwardWait

// WaitForwarding waits until the NIC's bridge port forwards, on a chassis of OVN until its flows
// are installed. A NIC that is on neither forwards at once. For a user who is not root the
// privileged helper waits for OVN.
func (m *Manager) WaitForwarding(ctx context.Context, found nic.NIC) error {
	return m.host.AwaitForwarding(ctx, found)
}
