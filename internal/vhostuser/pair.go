package vhostuser

import (
	"errors"
	"runtime/debug"

	"vmnet/internal/vhostuser/virtq"
)

// A Pair is a ring from the guest and one to it.
type Pair struct {
	dev      *Device
	from, to int           // indexes of the rings
	woken    chan struct{} // the device has changed
	looks    bool          // the current receive is by Look

	// The current receive. turn is bound once: each use of a method value would allocate.
	turn func(fd uintptr) bool
	n    int
	batch
}

func newPair(d *Device, n int) *Pair {
	p := &Pair{dev: d, from: 2*n + 1, to: 2 * n, woken: make(chan struct{}, 1)}
	p.turn = p.takeTurn
	return p
}

// errAgain makes Receive look at the device again.
var errAgain = errors.New("look at the device again")

// Receive waits for frames from the guest and takes up to len(frames) of them, a batch, which must
// be ended by Done. Until then the memory and the rings stay as they are, so the caller must not
// wait. Receive goes on when the frontend has gone and when another one comes. Its error matches
// fs.ErrClosed with errors.Is.
func (p *Pair) Receive(frames []Received) (int, error) {
	// Most often there are some, and to ask the poller costs as much as a frame.
	if n, ok := p.Look(frames); ok && n > 0 {
		return n, nil
	}
	for {
		kick, err := p.kick()
		if err != nil {
			return 0, err
		}
		if kick == nil {
			<-p.woken
			continue
		}
		p.n = 0
		err = kick.conn.Read(p.turn)
		switch {
		case p.n > 0:
			return p.n, nil
		case err != nil && !kick.isClosed():
			p.dev.fail(err) // the runtime's poller does not watch the file
		}
	}
}

// kick returns the event to wait for, or nil if the ring from the guest is not in use.
func (p *Pair) kick() (*event, error) {
	d := p.dev
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return nil, errClosed
	}
	if r := &d.rings[p.from]; r.served() && !d.isIdle() {
		return r.kick, nil
	}
	return nil, nil
}

// takeTurn reports whether the caller need not wait for a kick.
func (p *Pair) takeTurn(uintptr) bool {
	n, err := p.take()
	p.n = n
	return n > 0 || err != nil
}

// take takes frames, or asks for a kick if there are none. It returns errAgain if it has only
// dropped frames. It does not wait for the device's lock: its holder may close the kick file,
// and that waits until the poller's callback has returned. With frames, it keeps the lock.
func (p *Pair) take() (n int, err error) {
	d := p.dev
	if !d.mu.TryRLock() {
		return 0, errAgain
	}
	defer func() {
		if p.held = n > 0; !p.held {
			d.mu.RUnlock()
		}
	}()
	r := &d.rings[p.from]
	if !r.served() || d.isIdle() {
		return 0, errAgain
	}
	defer func() {
		if f := recover(); f != nil {
			n, err = 0, d.mem.Fault(f)
		}
		if err != nil && err != errAgain {
			d.fail(err)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	r.ring.WantKicks(false)
	have, err := r.ring.Available()
	if err == nil && have == 0 && !p.looks {
		r.ring.WantKicks(true)
		have, err = r.ring.Available()
	}
	if err != nil || have == 0 {
		return 0, err
	}
	if n, err = p.takeChains(r, have); err != nil || n > 0 {
		return n, err
	}
	if publish(r.ring) {
		r.interrupt()
	}
	return 0, errAgain
}

// giveBack publishes the chains of the batch, and reports whether the driver wants an interrupt.
func (p *Pair) giveBack(ring *virtq.Ring) (interrupts bool) {
	defer func() {
		if f := recover(); f != nil {
			p.dev.fail(p.dev.mem.Fault(f))
			interrupts = false
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return publish(ring)
}

// Done ends the batch: it gives the chains back to the driver, and wakes the guests that have got
// frames of the batch from s. The chains come back late on purpose: the frames are in place until
// then, and if this process is killed while it forwards them, the next one finds them in the ring
// again.
func (p *Pair) Done(s *Sender) {
	if p.held {
		d := p.dev
		if r := &d.rings[p.from]; p.giveBack(r.ring) {
			s.owe(d, r)
		}
		p.held = false
		d.mu.RUnlock()
	}
	s.wake()
}
