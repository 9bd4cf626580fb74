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

	"vmnet/bridge"
)

// A CaptureConfig says which frames are captured.
type CaptureConfig struct {
	Ports   []string `json:"ports"`             // of these ports, by name, each once
	In      bool     `json:"in,omitempty"`      // that came in by them; neither In nor Out is both
	Out     bool     `json:"out,omitempty"`     // that left by them
	Drops   bool     `json:"drops,omitempty"`   // only those that were dropped there, with the reason
	Snaplen int      `json:"snaplen,omitempty"` // bytes of each Ethernet frame; 0 is all
}

// maxCaptures is how many run at a time: each has an fd and a goroutine.
const maxCaptures = 16

// Validate checks what can be checked without the switch. Its error Is bridge.ErrInvalid.
func (cfg CaptureConfig) Validate() error {
	switch {
	case len(cfg.Ports) == 0 || len(cfg.Ports) > maxPorts:
		return fmt.Errorf("%w capture: %d ports: want 1 to %d", bridge.ErrInvalid, len(cfg.Ports), maxPorts)
	case cfg.Snaplen < 0:
		return fmt.Errorf("%w capture: snaplen %d: want 0 or more bytes", bridge.ErrInvalid, cfg.Snaplen)
	}
	seen := map[string]bool{}
	for _, name := range cfg.Ports {
		if seen[name] {
			return fmt.Errorf("%w capture: port %q is there twice", bridge.ErrInvalid, name)
		}
		seen[name] = true
	}
	return nil
}

// A capture is one reader of copies of frames.
type capture struct {
	sw      *Switch
	file    file // its end of the reader's pair
	views   []*view
	live    int // ports that are left; of sw.mu
	in, out bool
	drops   bool
	snaplen int

	// telling is read-locked by who writes records, without waiting, and locked for good at the end.
	telling sync.RWMutex
}

// A view is a capture's look at one port.
type view struct {
	*capture
	port   *Port
	index  int // of the port in CaptureConfig.Ports
	counts [2]struct{ seen, lost atomic.Uint64 }
}

// Capture sends copies of frames to the other end of f, the file that CapturePipe gives, until the reader stops or goes away, all of the
// ports are removed, or the switch is closed. It copies the fd; the caller keeps, and may close, its own.
//
// The goroutine that has handled the frames tells of them, and never waits: what the pair has no room for is lost, and
// counted. A port that nobody captures does not notice. A port that the switch does not have is an error that Is fs.ErrNotExist.
func (sw *Switch) Capture(f *os.File, cfg CaptureConfig) error {
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
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET {
		return fmt.Errorf("domain %d, type %d: want an AF_UNIX seqpacket socket", domain, kind)
	}
	return nil
}

func (sw *Switch) capture(f file, cfg CaptureConfig) error {
	c := &capture{sw: sw, file: f, in: cfg.In || !cfg.Out, out: cfg.Out || !cfg.In, drops: cfg.Drops, snaplen: cfg.Snaplen, live: len(cfg.Ports)}
	if c.snaplen == 0 || c.snaplen > maxFrame { // the longest record has that much
		c.snaplen = maxFrame
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	switch {
	case sw.closed:
		return errClosed
	case len(sw.captures) == maxCaptures:
		return fmt.Errorf("the switch has %d captures already", maxCaptures)
	}
	for i, name := range cfg.Ports {
		p := sw.table.Load().find(name)
		if p == nil {
			return fmt.Errorf("port %q: %w", name, ErrNoPort)
		}
		c.views = append(c.views, &view{capture: c, port: p, index: i})
	}
	sw.captures = append(sw.captures, c)
	for _, v := range c.views {
		v.port.way.Store(newWay(v.port, append(slices.Clone(v.port.way.Load().views), v)))
	}
	sw.watchers.Go(c.watch)
	return nil
}

// watch waits until the reader stops or leaves, or hangUp, and ends the capture. The reader sends nothing: what
// comes is the end.
func (c *capture) watch() {
	_, _ = c.file.os.Read(make([]byte, 1))
	c.sw.mu.Lock()
	for _, v := range c.views {
		others := slices.DeleteFunc(slices.Clone(v.port.way.Load().views), func(o *view) bool { return o == v })
		v.port.way.Store(newWay(v.port, others))
	}
	c.sw.captures = slices.DeleteFunc(c.sw.captures, func(o *capture) bool { return o == c })
	c.sw.mu.Unlock()

	c.telling.Lock() // who writes now is done first, nobody begins any more
	c.tellTotals()
	_ = c.file.close()
}

// hangUp ends a capture from the switch's side.
func (c *capture) hangUp() { _ = c.file.os.SetReadDeadline(time.Now()) }

// uncapture ends captures that have lost their last port. It is called with sw.mu.
func (sw *Switch) uncapture(p *Port) {
	for _, v := range p.way.Load().views {
		if v.live--; v.live == 0 {
			v.hangUp()
		}
	}
}

// newWay is a port's way through the views of captures, or its plain way where there are none.
func newWay(p *Port, views []*view) *way {
	w := &way{input: (*receiver).input, queues: p.wire.queues, views: views}
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

// A capturedQueue tells captures what left by a queue, and what did not.
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

// received tells of a batch that the port's receiver is done with.
func (v *view) received(r *receiver, frames []frame, at time.Time) {
	if !v.in || !v.telling.TryRLock() {
		return
	}
	defer v.telling.RUnlock()
	t := r.out.teller()
	for i := range frames {
		if f := &frames[i]; !v.drops || f.lost != Delivered {
			t.add(v, record{at: at, queue: r.n, why: f.lost, vnet: f.vnetLen(), head: f.data})
		}
	}
	t.send(v, In)
}

// sent tells of a list that was sent, or not.
func (v *view) sent(s *sender, queue int) {
	if !v.out || !v.telling.TryRLock() {
		return
	}
	defer v.telling.RUnlock()
	t, at := s.teller(), time.Now()
	for i := range s.n {
		if f, why := &s.list[i], s.fates[i]; v.drops == (why != Delivered) {
			t.add(v, record{at: at, queue: queue, why: why, vnet: s.vnet, head: f.Head, payload: f.Payload})
		}
	}
	t.send(v, Out)
}

// refuse drops a frame that came in by r, and cannot be sent by p.
func (p *Port) refuse(r *receiver, data []byte, why Reason) {
	p.drop(why)
	for _, v := range p.way.Load().views {
		v.refused(r, data, why)
	}
}

func (v *view) refused(r *receiver, data []byte, why Reason) {
	if !v.out || !v.drops || !v.telling.TryRLock() {
		return
	}
	defer v.telling.RUnlock()
	t := r.out.teller()
	t.add(v, record{at: time.Now(), queue: r.n % len(v.port.wire.queues), why: why, vnet: vnetLen, head: data})
	t.send(v, Out)
}
