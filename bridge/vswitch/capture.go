package vswitch

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/capture"
	"vmnet/internal/kernel/sockopt"
)

// maxCaptures limits the captures at a time: each takes an fd and a goroutine.
const maxCaptures = 16

// A captureSession sends copies of frames to one reader.
type captureSession struct {
	sw      *Switch
	file    file // the switch's end of the socketpair
	views   []*view
	live    int // ports that are left; guarded by sw.mu
	in, out bool
	drops   bool
	snaplen int

	// writing is read-locked while records are written, with TryRLock, and locked for good at
	// the end.
	writing sync.RWMutex
}

// A view is one port of a capture.
type view struct {
	*captureSession
	port   *Port
	index  int // of the port in capture.Config.Ports
	counts [2]struct{ seen, lost atomic.Uint64 }
}

// Capture sends copies of frames to the other end of f, which capture.Pipe returned. It ends when
// the reader stops or exits, all of the ports are removed, or the switch is closed. It copies the
// fd; the caller keeps its own and may close it.
//
// The goroutine that has handled the frames writes the records and never waits. A record for which
// the socketpair has no room is lost and counted. Ports that are not captured pay nothing. If the
// switch has no such port, the error matches fs.ErrNotExist with errors.Is.
func (sw *Switch) Capture(f *os.File, cfg capture.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	own, err := duplicate(f, checkCapture)
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if err := sw.capture(own, cfg); err != nil {
		return errors.Join(fmt.Errorf("capture: %w", err), own.close())
	}
	return nil
}

func checkCapture(fd int) error {
	return sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_SEQPACKET, "an AF_UNIX seqpacket socket")
}

func (sw *Switch) capture(f file, cfg capture.Config) error {
	c := &captureSession{
		sw: sw, file: f, live: len(cfg.Ports),
		in: cfg.In || !cfg.Out, out: cfg.Out || !cfg.In, drops: cfg.Drops, snaplen: cfg.Snaplen,
	}
	if c.snaplen == 0 || c.snaplen > maxFrame { // a record has room for maxFrame bytes
		c.snaplen = maxFrame
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	switch {
	case sw.closed:
		return errClosed
	case len(sw.captures) == maxCaptures:
		return fmt.Errorf("the switch already has %d captures", maxCaptures)
	}
	for i, name := range cfg.Ports {
		p := sw.table.Load().find(name)
		if p == nil {
			return fmt.Errorf("port %q: %w", name, ErrNoPort)
		}
		c.views = append(c.views, &view{captureSession: c, port: p, index: i})
	}
	sw.captures = append(sw.captures, c)
	for _, v := range c.views {
		v.port.path.Store(newPath(v.port, append(slices.Clone(v.port.path.Load().views), v)))
		sw.fast.revoke(v.port)
	}
	sw.watchers.Go(c.watch)
	return nil
}

// watch waits until the reader stops or exits, or hangUp is called, and ends the capture. The
// reader never sends data, so any return of Read means the end.
func (c *captureSession) watch() {
	_, _ = c.file.os.Read(make([]byte, 1))
	c.sw.mu.Lock()
	for _, v := range c.views {
		others := slices.DeleteFunc(slices.Clone(v.port.path.Load().views), func(o *view) bool { return o == v })
		v.port.path.Store(newPath(v.port, others))
	}
	c.sw.captures = slices.DeleteFunc(c.sw.captures, func(o *captureSession) bool { return o == c })
	c.sw.mu.Unlock()

	c.writing.Lock() // waits for writers, and keeps new ones out
	c.writeTotals()
	_ = c.file.close()
}

// hangUp ends a capture from the switch's side.
func (c *captureSession) hangUp() { _ = c.file.os.SetReadDeadline(time.Now()) }

// uncapture ends captures that have lost their last port. The caller holds sw.mu.
func (sw *Switch) uncapture(p *Port) {
	for _, v := range p.path.Load().views {
		if v.live--; v.live == 0 {
			v.hangUp()
		}
	}
}

// newPath returns a port's path through the views of captures, or the plain path if no capture
// views it.
func newPath(p *Port, views []*view) *path {
	w := &path{input: (*receiver).input, queues: p.wire.queues, views: views}
	if len(views) == 0 {
		return w
	}
	w.input = func(r *receiver, frames []frame) {
		at := time.Now()
		r.input(frames)
		for _, v := range views {
			v.received(r, frames, at)
		}
	}
	w.queues = make([]queue, len(p.wire.queues))
	for n, q := range p.wire.queues {
		w.queues[n] = &capturedQueue{q, n, views}
	}
	return w
}

// A capturedQueue reports to captures which frames a queue has sent and which it has dropped.
type capturedQueue struct {
	queue
	n     int
	views []*view
}

func (q *capturedQueue) send(s *sender) {
	q.queue.send(s)
	for _, v := range q.views {
		v.sent(s, q.n)
	}
}

// received captures a batch that the port's receiver has handled.
func (v *view) received(r *receiver, frames []frame, at time.Time) {
	if !v.in || !v.writing.TryRLock() {
		return
	}
	defer v.writing.RUnlock()
	w := r.out.recordWriter()
	for i := range frames {
		if f := &frames[i]; !v.drops || f.lost != Delivered {
			w.add(v, record{at: at, queue: r.n, why: f.lost, vnet: f.headerLen(), head: f.data, rest: f.rest})
		}
	}
	w.send(v, capture.In)
}

// sent captures a list after it was sent or dropped.
func (v *view) sent(s *sender, queue int) {
	if !v.out || !v.writing.TryRLock() {
		return
	}
	defer v.writing.RUnlock()
	w, at := s.recordWriter(), time.Now()
	for i := range s.n {
		if f, why := &s.list[i], s.reasons[i]; v.drops == (why != Delivered) {
			w.add(v, record{
				at: at, queue: queue, why: why, vnet: s.vnet, head: f.Head, payload: f.Payload, rest: f.Rest,
			})
		}
	}
	w.send(v, capture.Out)
}

// refuse drops a frame that r has received and p cannot send.
func (p *Port) refuse(r *receiver, f *frame, why Reason) {
	p.drop(why)
	for _, v := range p.path.Load().views {
		v.refused(r, f, why)
	}
}

func (v *view) refused(r *receiver, f *frame, why Reason) {
	if !v.out || !v.drops || !v.writing.TryRLock() {
		return
	}
	defer v.writing.RUnlock()
	w := r.out.recordWriter()
	w.add(v, record{
		at: time.Now(), queue: r.n % len(v.port.wire.queues), why: why, vnet: vnetLen, head: f.data, rest: f.rest,
	})
	w.send(v, capture.Out)
}
