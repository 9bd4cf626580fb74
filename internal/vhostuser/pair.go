package vhostuser

import (
	"errors"
	"runtime/debug"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser/virtq"
)

// A Pair is a ring from the guest and one to it.
type Pair struct {
	dev      *Device
	from, to int           // indexes of the rings
	woken    chan struct{} // the device has changed
	looks    bool          // the current receive is by Look

	// The current receive, and its buffers. turn is bound once: each use of a method value would
	// allocate.
	turn   func(fd uintptr) bool
	room   []byte
	frames [][]byte
	n      int
	pieces [][]byte
}

func newPair(d *Device, n int) *Pair {
	p := &Pair{dev: d, from: 2*n + 1, to: 2 * n, woken: make(chan struct{}, 1)}
	p.turn = p.takeTurn
	return p
}

// errAgain makes Receive look at the device again.
var errAgain = errors.New("look at the device again")

// Receive waits for frames from the guest and copies up to len(frames) of them into room, one after
// the other, each at a multiple of 64 bytes. A frame begins with a vnet header of offload.HeaderLen
// bytes. A nil frame was longer than offload.MaxFrame. room must have at least RoomLen bytes.
// The caller is done with the frames when it calls Receive again. Receive goes on when the frontend
// has gone and when another one comes. Its error matches fs.ErrClosed with errors.Is.
func (p *Pair) Receive(room []byte, frames [][]byte) (int, error) {
	p.room, p.frames = room, frames
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

// RoomLen is the least length of Receive's room in bytes.
const RoomLen = offload.HeaderLen + offload.MaxFrame

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
// and that waits until the poller's callback has returned.
func (p *Pair) take() (n int, err error) {
	d := p.dev
	if !d.mu.TryRLock() {
		return 0, errAgain
	}
	defer d.mu.RUnlock()
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
	p.publish(r)
	r.ring.WantKicks(false)
	have, err := r.ring.Available()
	if err == nil && have == 0 && !p.looks {
		r.ring.WantKicks(true)
		have, err = r.ring.Available()
	}
	if err != nil || have == 0 {
		return 0, err
	}
	if n, err = p.copyOut(r, have); err == nil && n == 0 {
		err = errAgain
	}
	return n, err
}

// publish gives the chains of the last batch back to the driver. That is late on purpose: if this
// process is killed while it forwards the batch, the next one finds the frames in the ring again.
func (p *Pair) publish(r *vring) {
	if r.ring.Unpublished() {
		r.ring.Publish()
		if r.ring.Interrupts() {
			r.interrupt(p.dev.ticks.Load())
		}
	}
}

// copyOut copies frames out of the guest's memory and marks their chains as used, for publish. It
// takes at least one chain of those that it has, and as many as there is room for. While the ring
// is disabled it drops them.
func (p *Pair) copyOut(r *vring, have int) (n int, err error) {
	header := headerOf(p.dev.features)
	room := p.room
	for range min(have, len(p.frames)) {
		var c virtq.Chain
		c, p.pieces, err = r.ring.Chain(0, false, p.pieces[:0])
		if err != nil {
			return 0, err
		}
		size := int(c.Len) - header + offload.HeaderLen
		switch {
		case !r.enabled:
		case size > RoomLen:
			p.frames[n] = nil
			n++
		case size > len(room):
			return n, nil
		default:
			p.frames[n] = p.gather(room, header, max(0, size))
			n++
			room = room[min((size+63)&^63, len(room)):]
		}
		r.ring.Use(c.Head, 0)
	}
	return n, nil
}

// gather copies the pieces of a chain to room, and shortens the vnet header to offload.HeaderLen
// bytes. It clears the flags that only a device may set (virtio 1.2, 5.1.6.2.1).
func (p *Pair) gather(room []byte, header, size int) []byte {
	at, skip := 0, 0 // skip what is in the guest's header only
	for _, piece := range p.pieces {
		for len(piece) > 0 {
			switch {
			case at < offload.HeaderLen:
				n := copy(room[at:offload.HeaderLen], piece)
				at, piece = at+n, piece[n:]
			case skip < header-offload.HeaderLen:
				n := min(header-offload.HeaderLen-skip, len(piece))
				skip, piece = skip+n, piece[n:]
			default:
				n := copy(room[at:size], piece)
				at, piece = at+n, piece[len(piece):]
			}
		}
	}
	if at >= 1 {
		room[0] &= offload.NeedsCsum
	}
	return room[:at:at]
}
