package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// vmm is a running guest that we have locked, by the way in which a NIC reaches it: its monitor, or
// libvirt's own devices. NICs are named by their ids.
type vmm interface {
	// process is the VMM's. alive is an error where that process has ended: before, the
	// number has meant no other.
	process() int
	alive() error
	// cpus counts the guest's virtual CPUs.
	cpus(ctx context.Context) (int, error)
	// has tells whether the NIC is plugged.
	has(ctx context.Context, nic string) (bool, error)
	// RxFilter is what the guest's driver wants to receive; nil where that cannot be asked.
	rxFilter(ctx context.Context, nic string) (*qmp.RxFilter, error)

	// prepare decides what the guest must be asked for. It changes nothing.
	prepare(ctx context.Context, h *backend.NIC) error
	// plugSteps hand the NIC over; host and hostSteps have been run by then.
	plugSteps(h *backend.NIC) []step.Step

	// unplugText is what unplug does, for people.
	unplugText(nic string) string
	// unplug waits until the guest has let go of the NIC; waiting is told from time to time.
	unplug(ctx context.Context, nic string, waiting func(elapsed time.Duration)) error
	// request asks the guest to let go of the NIC, and does not wait.
	request(ctx context.Context, nic string) error
	// cutOff takes the backend from a NIC, as far as that goes without the guest.
	cutOff(ctx context.Context, nic string) error
	// giveBack makes the VMM let go of a NIC that is not plugged, and elsewhere what it was given
	// in other ways.
	giveBack(ctx context.Context, dev *inventory.Device) error
	elsewhere(ctx context.Context, dev *inventory.Device) error

	Close() error
}

// vm is a guest whose QEMU we reach by its monitor: the connection is the lock, or libvirt's
// monitor commands stand in for it and domain has the lock.
type vm struct {
	*qmp.Conn
	m      *Manager
	guest  *guest
	socket monitorSocket // that the connection is over; nothing: through libvirt
	domain *domain       // nil: no guest of libvirt's
}

// open finds the guest and waits for its lock. via says how the NIC is, or was, handed over; empty
// is the guest's usual way.
func (m *Manager) open(ctx context.Context, t nic.Target, via nic.Via) (vmm, error) {
	d, err := m.openDomain(ctx, t)
	switch {
	case err != nil:
		return nil, err
	case d == nil && via != "":
		return nil, fmt.Errorf("%w: guest %s is not libvirt's, --via does not concern it", nic.ErrInvalid, t.VM)
	case d == nil:
		return asVMM(m.openMonitor(ctx, t))
	case via == nic.ViaMonitor:
		return d.monitor(ctx)
	}
	return d, nil
}

// asVMM keeps a nil from becoming an interface that is none.
func asVMM(v *vm, err error) (vmm, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (v *vm) Close() error {
	err := v.Conn.Close()
	if v.domain != nil {
		return errors.Join(err, v.domain.Close()) // and the guest is the domain's
	}
	return errors.Join(err, v.guest.hold.Close())
}

func (v *vm) process() int { return v.guest.PID }

func (v *vm) alive() error { return v.guest.hold.Check() }

func (v *vm) cpus(ctx context.Context) (int, error) { return v.CPUs(ctx) }

func (v *vm) has(ctx context.Context, nicID string) (bool, error) {
	return v.HasDevice(ctx, nic.DeviceID(nicID))
}

// RxFilter: models other than virtio have no filter to tell.
func (v *vm) rxFilter(ctx context.Context, nicID string) (*qmp.RxFilter, error) {
	f, err := v.RxFilter(ctx, nic.DeviceID(nicID))
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil, nil
	}
	return &f, err
}

// prepare finds where the device can be plugged, unless options say so, and what types its options
// are of.
func (v *vm) prepare(ctx context.Context, h *backend.NIC) (err error) {
	if _, err := v.CPUs(ctx); err != nil { // there is no machine to look into, with -preconfig
		return err
	}
	if h.AnyModel {
		if h.Device.Model, err = v.BestModel(ctx); err != nil {
			return err
		}
		h.Record.Model = h.Device.Model
	}
	if h.Device.Bus == "" {
		port, err := v.FreePortFor(ctx, h.Device.Model)
		if err != nil {
			return err
		}
		h.Device.Bus = port.Bus
		if h.Device.Addr == "" {
			h.Device.Addr = port.Addr
		}
	}
	if major, minor, _ := v.Version(); h.Device.Backend == qmp.Socket && (major > 7 || major == 7 && minor >= 2) {
		h.Device.Backend = qmp.Dgram
	}
	h.Device, err = v.TypeOptions(ctx, h.Device)
	return err
}

// plugSteps end with our copies closed: from then on the device lives as long as QEMU holds it.
func (v *vm) plugSteps(h *backend.NIC) []step.Step {
	return append(v.PlugSteps(h.Device, &h.Files), step.Step{
		Name: "close",
		Text: "close our copies of the fds",
		Do:   func(context.Context) error { return h.Close() },
	})
}

func (v *vm) unplugText(nicID string) string {
	id := nic.DeviceID(nicID)
	return fmt.Sprintf("device_del %s, again each second until the guest lets go of it; netdev_del %s", id, qmp.NetdevID(id))
}

func (v *vm) unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	return v.Unplug(ctx, nic.DeviceID(nicID), waiting)
}

func (v *vm) request(ctx context.Context, nicID string) error {
	return v.RequestUnplug(ctx, nic.DeviceID(nicID))
}

func (v *vm) cutOff(ctx context.Context, nicID string) error {
	return v.Release(ctx, nic.DeviceID(nicID))
}

func (v *vm) giveBack(ctx context.Context, dev *inventory.Device) error {
	return v.Rollback(ctx, nic.DeviceID(dev.Want.NIC), dev.Want.Queues)
}

// elsewhere tries the guest's other monitors: a fd that was given through one is known to that one
// only.
func (v *vm) elsewhere(ctx context.Context, dev *inventory.Device) error {
	all, err := v.guest.Sockets()
	if err != nil || !all[0].Told { // no other is surely a monitor
		return nil
	}
	var errs []error
	for _, s := range all {
		dialCtx, cancel := monitorTimeout(ctx)
		other, err := v.m.openOther(dialCtx, v, dev.Want.VM, s)
		if other != nil {
			err = errors.Join(other.giveBack(dialCtx, dev), other.Close())
		}
		cancel()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
