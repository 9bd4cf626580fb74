package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// unplugRepeat is the pause before device_del is sent again.
const unplugRepeat = time.Second

// Unplug takes a NIC away: the device, and once the guest has let go of it, its netdev
// NetdevID(deviceID). What is not there is success.
//
// device_del only asks the guest, and one that boots swallows the request: it is
// repeated each second until the device has gone, the guest has refused ([ErrGuestRefused]),
// or ctx has ended ([ErrUnplugTimeout], which also Is ctx's error). In both cases the NIC
// goes on working, unless the guest gives in later; its netdev stays until
// Unplug is called again, or [Conn.Release], which also takes the NIC's
// backend from under a guest that will not let go.
//
// progress, if not nil, is told each second how long the wait has been.
func (c *Conn) Unplug(ctx context.Context, deviceID string, progress func(elapsed time.Duration)) error {
	if err := c.removeDevice(ctx, deviceID, progress); err != nil {
		return err
	}
	return c.Release(ctx, deviceID)
}

// Release takes the backend from a NIC: its netdev, and the names of its netns and its label. What
// is not there is success. A device that is still there is dead from then on.
func (c *Conn) Release(ctx context.Context, deviceID string) error {
	if err := c.NetdevDel(ctx, NetdevID(deviceID)); err != nil {
		return err
	}
	return errors.Join(c.CloseFD(ctx, NetnsName(deviceID)), c.CloseFD(ctx, LabelName(deviceID)))
}

// removeDevice is the device's half of Unplug.
func (c *Conn) removeDevice(ctx context.Context, id string, progress func(time.Duration)) error {
	// Before the first request, so that no answer is missed.
	events := c.Subscribe(16, "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
	defer events.Close()
	start := time.Now()
	tick := time.NewTicker(unplugRepeat)
	defer tick.Stop()
	for {
		gone, err := c.askUnplug(ctx, id)
		if err == nil && !gone {
			gone, err = awaitGone(ctx, events, id, tick.C)
		}
		switch {
		case gone:
			return nil
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("unplug %s: %w: %w", id, ErrUnplugTimeout, ended(ctx))
		case err != nil && c.Err() != nil:
			return fmt.Errorf("unplug %s: %w", id, c.Err())
		case err != nil:
			return fmt.Errorf("unplug %s: %w", id, err)
		}
		if progress != nil {
			progress(time.Since(start))
		}
	}
}

// RequestUnplug asks the guest once to let go of a device, and does not wait. A device
// that is not there, or that it was asked for before, is success.
func (c *Conn) RequestUnplug(ctx context.Context, deviceID string) error {
	if _, err := c.askUnplug(ctx, deviceID); err != nil {
		return fmt.Errorf("unplug %s: %w", deviceID, err)
	}
	return nil
}

// askUnplug requests the device. It also tells a device that has gone unnoticed.
func (c *Conn) askUnplug(ctx context.Context, id string) (gone bool, err error) {
	err = c.Execute(ctx, "device_del", idArg(id), nil)
	var e *Error
	switch {
	case errors.Is(err, ErrDeviceNotFound):
		return true, nil
	case errors.As(err, &e) && underWay(e.Desc):
		return false, nil
	default:
		return false, err
	}
}

// underWay recognises the refusals that mean "the guest has been asked already". They
// have no class of their own.
func underWay(desc string) bool {
	return strings.Contains(desc, "already in the process of unplug") || strings.Contains(desc, "guest is busy")
}

// awaitGone waits for the guest's answer until the next tick.
func awaitGone(ctx context.Context, events *Subscription, id string, tick <-chan time.Time) (gone bool, err error) {
	for {
		select {
		case <-tick:
			return false, nil
		case <-ctx.Done():
			return false, ended(ctx)
		case e, open := <-events.C:
			if !open {
				return false, ErrClosed
			}
			var data struct{ Device string } // missing where a part of a device went
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
