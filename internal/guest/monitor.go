package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/backend"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A Monitor plugs NICs by QEMU's monitor. Its connection is the guest's lock. For a libvirt guest
// the lock is the domain's, and the connection goes through libvirt's monitor commands.
type Monitor struct {
	conn   *qmp.Conn
	finder *Finder
	found  *Found
	socket monitorSocket // that the connection is over; zero if it goes through libvirt
}

// QMP returns the connection, which ends with the Guest.
func (m *Monitor) QMP() *qmp.Conn { return m.conn }

// CPUs returns the number of the guest's virtual CPUs.
func (m *Monitor) CPUs(ctx context.Context) (int, error) { return m.conn.CPUs(ctx) }

// Has reports whether QEMU has the NIC's device.
func (m *Monitor) Has(ctx context.Context, nicID string) (bool, error) {
	return m.conn.HasDevice(ctx, nic.DeviceID(nicID))
}

// RxFilter returns what the guest's driver wants to receive; nil for a model without such a filter.
func (m *Monitor) RxFilter(ctx context.Context, nicID string) (*qmp.RxFilter, error) {
	f, err := m.conn.RxFilter(ctx, nic.DeviceID(nicID))
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil, nil
	}
	return &f, err
}

// Plan finds a place for the device, unless its options name one, and the types of its options. The
// steps end with our copies closed: from then on the host interface lives as long as QEMU holds it.
func (m *Monitor) Plan(ctx context.Context, n *backend.NIC) (Handover, error) {
	if _, err := m.conn.CPUs(ctx); err != nil { // with -preconfig there is no machine to look into
		return Handover{}, err
	}
	if err := m.chooseModel(ctx, n); err != nil {
		return Handover{}, err
	}
	if n.Device.Bus == "" {
		port, err := m.conn.FreePortFor(ctx, n.Device.Model)
		if err != nil {
			return Handover{}, err
		}
		n.Device.Bus = port.Bus
		if n.Device.Addr == "" {
			n.Device.Addr = port.Addr
		}
	}
	if major, minor, _ := m.conn.Version(); n.Device.Backend == qmp.Socket && (major > 7 || major == 7 && minor >= 2) {
		n.Device.Backend = qmp.Dgram
	}
	var err error
	if n.Device, err = m.conn.TypeOptions(ctx, n.Device); err != nil {
		return Handover{}, err
	}
	return Handover{Steps: append(m.conn.PlugSteps(n.Device, &n.Files), step.Step{
		Name: "close",
		Text: "close our copies of the fds",
		Do:   func(context.Context) error { return n.Close() },
	})}, nil
}

// chooseModel chooses the model that fits the machine best, if none was asked for.
func (m *Monitor) chooseModel(ctx context.Context, n *backend.NIC) error {
	if !n.AnyModel {
		return nil
	}
	model, err := m.conn.BestModel(ctx)
	if err != nil {
		return err
	}
	n.Device.Model, n.Record.Model = model, model
	return nil
}

// UnplugText describes Unplug.
func (m *Monitor) UnplugText(nicID string) string {
	id := nic.DeviceID(nicID)
	return fmt.Sprintf("device_del %s, again each second until the guest releases it; netdev_del %s",
		id, qmp.NetdevID(id))
}

// Unplug removes the device, for which the guest must release it, and the netdev.
func (m *Monitor) Unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	return m.conn.Unplug(ctx, nic.DeviceID(nicID), waiting)
}

// RequestUnplug asks the guest to release the device, and does not wait.
func (m *Monitor) RequestUnplug(ctx context.Context, nicID string) error {
	return m.conn.RequestUnplug(ctx, nic.DeviceID(nicID))
}

// RemoveNetdev takes the netdev from a NIC, as far as QEMU allows without the guest. None is
// success.
func (m *Monitor) RemoveNetdev(ctx context.Context, nicID string) error {
	return m.conn.Release(ctx, nic.DeviceID(nicID))
}

func (m *Monitor) rollback(ctx context.Context, r nic.Record) error {
	return m.conn.Rollback(ctx, nic.DeviceID(r.NIC), r.Queues)
}

func (m *Monitor) rollbackElsewhere(ctx context.Context, r nic.Record) error {
	all, err := m.found.process.Sockets()
	if err != nil || !all[0].Told { // no other is surely a monitor
		return nil
	}
	var errs []error
	for _, s := range all {
		dialing, cancel := WithTimeout(ctx)
		other, err := m.openOther(dialing, s)
		if other != nil {
			err = errors.Join(other.rollback(dialing, r), other.conn.Close())
		}
		cancel()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
