package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

func (h *Host) WaitGoneFor(ctx context.Context, dev *Device, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return h.WaitGone(ctx, dev)
}

// WaitGone waits until a link is gone from its netns, or with it.
func (h *Host) WaitGone(ctx context.Context, dev *Device) error {
	for {
		there, err := h.Exists(ctx, dev)
		if err != nil || !there {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interface %s is still %w: it goes when QEMU answers and lets go of it, or by vmnet reconcile: %w", dev.Name, nic.ErrInUse, context.Cause(ctx))
		case <-time.After(PollEvery):
		}
	}
}

// Exists tells whether a link still exists. Who closes its netns last is of no matter: a VMM
// that was started with the fd can keep that without the link.
func (h *Host) Exists(ctx context.Context, dev *Device) (bool, error) {
	if !dev.HasLink() {
		now, err := h.Reread(ctx, dev)
		return now != nil, err
	}
	err := h.On(dev, func(nl *rtnl.Conn) error {
		_, err := nl.LinkByIndex(dev.Index)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
