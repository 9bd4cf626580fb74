package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Drops are the frames of one NIC that the kernel drops: by port security, and by the filter of
// what comes in. Close them.
type Drops struct {
	NIC nic.NIC

	m       *Manager
	dev     inventory.Device
	capture *bpfguard.Capture
}

// A Dropped is a frame that was dropped.
type Dropped struct {
	Time      time.Time
	Reason    string
	FromGuest bool   // else it was for the guest
	Length    int    // in bytes, of the whole Ethernet frame
	Data      []byte // its first bytes, at most 256
}

// OpenDrops begins to capture what the kernel drops at a guest's NIC. An empty id means the guest's
// only NIC. It needs CAP_SYS_ADMIN.
func (m *Manager) OpenDrops(ctx context.Context, vm, id string) (*Drops, error) {
	dev, err := m.onlyDevice(ctx, vm, id)
	if err == nil && (dev.Want.Switch || !dev.HasLink()) {
		err = errors.New("the kernel checks no frame of it (if it is on a switch: " +
			"vmnet switch capture SWITCH --drops)")
	}
	var d *Drops
	if err == nil {
		d = &Drops{NIC: dev.NIC(), m: m, dev: dev}
		err = m.host.On(&dev, func(nl *rtnl.Conn) (err error) {
			d.capture, err = bpfguard.OpenCapture(nl, dev.Link)
			return err
		})
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w (vmnet set --port-security or --allow-in has the kernel check frames)", err)
		fallthrough
	case err != nil:
		return nil, fmt.Errorf("what is dropped of %s: %w", strings.TrimSuffix(vm+"/"+id, "/"), err)
	}
	return d, nil
}

// onlyDevice returns the device of a guest's NIC.
func (m *Manager) onlyDevice(ctx context.Context, vm, id string) (inventory.Device, error) {
	all, err := m.host.AllDevices(ctx)
	if err != nil {
		return inventory.Device{}, err
	}
	all = slices.DeleteFunc(all, func(dev inventory.Device) bool { return dev.Want.VM != vm || dev.IsUnconfirmed() })
	return only(all, id, func(dev inventory.Device) nic.NIC { return dev.NIC() })
}

// SetDeadline bounds the waits of Next. A deadline of at most a second keeps the capture complete.
func (d *Drops) SetDeadline(t time.Time) { d.capture.SetDeadline(t) }

// Next waits for a frame, whose Data is valid until the next call. If the deadline passes, the
// error matches os.ErrDeadlineExceeded with errors.Is.
func (d *Drops) Next() (Dropped, error) {
	f, err := d.capture.Next()
	return Dropped(f), err
}

// Lost returns how many frames were lost because they were not read in time.
func (d *Drops) Lost() (uint64, error) { return d.capture.Lost() }

// Close ends the capture.
func (d *Drops) Close() error { return d.capture.Close() }

// Gone reports whether the NIC's device has gone.
func (d *Drops) Gone(ctx context.Context) bool {
	_, err := d.m.host.Refresh(ctx, d.dev)
	return errors.Is(err, fs.ErrNotExist)
}
