package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// UnplugRepeat is the time after which a guest that has not released a device is asked again: a
// guest that boots drops requests.
const UnplugRepeat = time.Second

// Unplug takes a NIC away: the device, and once the guest has released it, its netdev
// NetdevID(deviceID). It is success if they are not there.
//
// device_del only asks the guest. Unplug repeats it each [UnplugRepeat] until the device has gone,
// the guest has refused ([ErrGuestRefused]), QEMU has ([*Error]), or ctx has ended
// ([ErrUnplugTimeout], which also matches ctx.Err()). Then the NIC continues to work, unless the
// guest releases it later; its netdev stays until the next Unplug, or [Conn.Release], which also
// takes the backend from a NIC that the guest does not release.
//
// progress, if not nil, is called each second with how long the wait has been, also while QEMU does
// not answer.
func (c *Conn) Unplug(ctx context.Context, deviceID string, progress func(elapsed time.Duration)) error {
	if err := c.removeDevice(ctx, deviceID, progress); err != nil {
		return err
	}
	return c.Release(ctx, deviceID)
}

// Release takes the backend from a NIC: its netdev, and the names of its netns and its label. It is
// success if they are not there. A device that is still there is dead from then on.
func (c *Conn) Release(ctx context.Context, deviceID string) error {
	if err := c.NetdevDel(ctx, NetdevID(deviceID)); err != nil {
		return err
	}
	return errors.Join(c.CloseFD(ctx, NetnsName(deviceID)), c.CloseFD(ctx, LabelName(deviceID)))
}

// removeDevice does the device's part of Unplug.
func (c *Conn) removeDevice(ctx context.Context, id string, progress func(time.Duration)) error {
	// Before the first request, so that no answer is missed.
	events := c.Subscribe(16, "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
	defer events.Close()
	start := time.Now()
	report := func() {
		if progress != nil {
			progress(time.Since(start))
		}
	}
	tick := time.NewTicker(UnplugRepeat)
	defer tick.Stop()
	for {
		gone, err := c.askUnplugReporting(ctx, id, tick.C, report)
		if err == nil && !gone {
			gone, err = awaitGone(ctx, events, id, tick.C)
		}
		switch {
		case gone:
			return nil
		case err != nil && c.Err() != nil:
			return fmt.Errorf("unplug %s: %w", id, c.Err())
		case err != nil && errors.Is(err, ctx.Err()):
			return fmt.Errorf("unplug %s: %w: %w", id, ErrUnplugTimeout, err)
		case err != nil:
			return fmt.Errorf("unplug %s: %w", id, err)
		}
		report()
	}
}

// askUnplugReporting is askUnplug, and calls report at each tick until QEMU has answered.
func (c *Conn) askUnplugReporting(ctx context.Context, id string, tick <-chan time.Time,
	report func(),
) (gone bool, err error) {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		gone, err = c.askUnplug(ctx, id)
	}()
	for {
		select {
		case <-answered:
			return gone, err
		case <-tick:
			report()
		}
	}
}

// RequestUnplug asks the guest once to release a device, and does not wait. It is success if the
// device is not there, or the guest was asked before.
func (c *Conn) RequestUnplug(ctx context.Context, deviceID string) error {
	if _, err := c.askUnplug(ctx, deviceID); err != nil {
		return fmt.Errorf("unplug %s: %w", deviceID, err)
	}
	return nil
}

// askUnplug sends the request. gone reports that the device has gone already, without an event.
func (c *Conn) askUnplug(ctx context.Context, id string) (gone bool, err error) {
	err = c.Execute(ctx, "device_del", idArg(id), nil)
	var e *Error
	switch {
	case errors.Is(err, ErrDeviceNotFound):
		return true, nil
	case errors.As(err, &e) && IsUnplugPending(e.Desc):
		return false, nil
	default:
		return false, err
	}
}

// pendingUnplugs are in QEMU's texts that refuse a request because an earlier one is pending, which
// have no class of their own: of qmp_device_del in softmmu/qdev-monitor.c,
// pcie_cap_slot_unplug_request_cb in hw/pci/pcie.c and shpc_device_unplug_request_cb in
// hw/pci/shpc.c, spapr_pci_unplug_request in hw/ppc/spapr_pci.c.
var pendingUnplugs = []string{
	"already in the process of unplug",
	"guest is busy (power indicator blinking)",
	"unplug already in progress",
}

// IsUnplugPending reports whether QEMU's text of a refused device_del, which libvirt passes on,
// means that the guest was asked before, and has not answered yet.
func IsUnplugPending(text string) bool {
	return slices.ContainsFunc(pendingUnplugs, func(part string) bool { return strings.Contains(text, part) })
}

// awaitGone waits for the guest's answer until the next tick. An answer that has arrived takes
// precedence over the end of ctx.
func awaitGone(ctx context.Context, events *Subscription, id string, tick <-chan time.Time) (gone bool, err error) {
	for {
		select {
		case <-tick:
			return false, nil
		case <-ctx.Done():
			if len(events.C) == 0 {
				return false, ended(ctx)
			}
		case e, open := <-events.C:
			if !open {
				return false, ErrClosed
			}
			var data struct{ Device string } // missing if a part of a device went
			if json.Unmarshal(e.Data, &data) != nil || data.Device != id {
				continue
			}
			if e.Name == "DEVICE_UNPLUG_GUEST_ERROR" {
				return false, ErrGuestRefused
			}
			return true, nil
		}
	}
}
