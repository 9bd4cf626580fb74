package main

import (
	"context"
	"errors"
	"os"
	"time"

	"vmnet/bridge/vswitch/capture"
	"vmnet/tapmgr"
)

// captureDrops captures the frames that the kernel drops at a NIC's device.
func (a *app) captureDrops(ctx context.Context, vm, id string, o *captureVerb) error {
	return a.withManager(func(m *tapmgr.Manager) error {
		d, err := m.OpenDrops(ctx, vm, id)
		if err != nil {
			return err
		}
		ctx, cancel := o.bound(ctx)
		defer cancel()
		o.place, o.cfg.Ports = d.NIC.Type+" "+d.NIC.Interface, []string{d.NIC.Interface}
		err = a.writeCapture(o, func(sink frameSink) (int, []capture.Totals, error) {
			n, err := followDrops(ctx, d, sink, o)
			lost, lostErr := d.Lost()
			// Which direction the lost ones had is not known.
			t := capture.Totals{Direction: capture.In, Seen: uint64(n) + lost, Lost: lost}
			if o.cfg.Out {
				t.Direction = capture.Out
			}
			return n, []capture.Totals{t}, errors.Join(err, lostErr)
		})
		return errors.Join(err, d.Close())
	})
}

// goneEvery is how often followDrops looks whether the NIC's device is still there.
const goneEvery = time.Second

// followDrops writes frames until o's count is reached, ctx ends or the NIC's device has gone.
func followDrops(ctx context.Context, d *tapmgr.Drops, sink frameSink, o *captureVerb) (n int, err error) {
	looked := time.Now()
	for ctx.Err() == nil && (o.count == 0 || n < o.count) {
		d.SetDeadline(time.Now().Add(flushEvery))
		f, err := d.Next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := sink.Flush(); err != nil {
				return n, err
			}
		case err != nil:
			return n, err
		case f.FromGuest && o.cfg.Out, !f.FromGuest && o.cfg.In, o.keep != nil && !o.keep(f.Data):
		default:
			if err := sink.Write(o.dropped(f)); err != nil {
				return n, err
			}
			n++
		}
		if time.Since(looked) > goneEvery {
			looked = time.Now()
			if err := sink.Flush(); err != nil {
				return n, err
			}
			if d.Gone(ctx) && ctx.Err() == nil {
				return n, errGone
			}
		}
	}
	return n, sink.Flush()
}

// dropped returns a frame as a sink takes it.
func (o *captureVerb) dropped(f tapmgr.Dropped) capture.Frame {
	c := capture.Frame{Time: f.Time, Direction: capture.Out, Reason: f.Reason, Length: f.Length, Data: f.Data}
	if f.FromGuest {
		c.Direction = capture.In
	}
	if o.cfg.Snaplen > 0 {
		c.Data = c.Data[:min(o.cfg.Snaplen, len(c.Data))]
	}
	return c
}
