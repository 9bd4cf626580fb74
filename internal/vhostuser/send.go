package vhostuser

import (
	"encoding/binary"
	"runtime/debug"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser/guestmem"
	"vmnet/internal/vhostuser/virtq"
)

// A Result is what has become of a frame.
type Result uint8

// The results of Send.
const (
	Sent     Result = iota
	Full            // the guest's ring has no room
	Down            // there is no frontend, or its ring is not in use
	TooLong         // longer than the guest's buffers
	Rejected        // it asks for an offload that the guest has not negotiated
)

// A Sender puts frames into guests' memory for one goroutine. It does not allocate once its buffers
// have grown.
type Sender struct {
	pieces [][]byte
	chains []virtq.Chain
}

// Send puts frames into the guest's ring and sets the result of each, up to the length of results.
// Head and Payload of a frame are the vnet header of VnetHdr bytes and the Ethernet frame, in two
// pieces; Head has at least the header. Send writes to the header. It never waits for the guest.
//
// If the guest has not enabled the pair, its first pairs take the frames.
func (p *Pair) Send(s *Sender, list []offload.Frame, results []Result) {
	results = results[:len(list)]
	d := p.dev
	if !d.mu.TryRLock() { // a message changes the memory
		fill(results, Full)
		return
	}
	defer d.mu.RUnlock()
	r := d.target(p.to)
	if r == nil || d.isIdle() {
		fill(results, Down)
		return
	}
	r.mu.Lock()
	interrupts := d.put(s, r, list, results)
	r.mu.Unlock()
	if interrupts {
		r.interrupt(d.ticks.Load())
	}
}

func fill(results []Result, with Result) {
	for i := range results {
		results[i] = with
	}
}

// target returns the ring for frames of that ring: itself if it is in use, or one of those before
// it. The caller holds mu.
func (d *Device) target(ring int) *vring {
	if r := &d.rings[ring]; r.usable() {
		return r
	}
	enabled := 0
	for enabled < d.pairs && d.rings[2*enabled].usable() {
		enabled++
	}
	if enabled == 0 {
		return nil
	}
	return &d.rings[2*(ring/2%enabled)]
}

// put puts the frames into a ring, and reports whether the guest wants an interrupt. If the ring or
// the memory is broken, the frames are down and the session ends.
func (d *Device) put(s *Sender, r *vring, list []offload.Frame, results []Result) (interrupts bool) {
	var err error
	defer func() {
		if f := recover(); f != nil {
			err = d.mem.Fault(f)
		}
		if err != nil {
			fill(results, Down)
			d.fail(err)
			interrupts = false
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	sent := false
	for i := range list {
		f := &list[i]
		if !takes(d.features, f.Head) {
			results[i] = Rejected
			continue
		}
		if results[i], err = d.putFrame(s, r.ring, f); err != nil {
			return false
		}
		sent = sent || results[i] == Sent
	}
	if !sent {
		return false
	}
	r.ring.Publish()
	return r.ring.Interrupts()
}

// maxPieces limits the pieces of memory for one frame: a guest that offers buffers of a byte each
// must not keep other ports' goroutines busy.
const maxPieces = 1024

// putFrame copies a frame into as many chains as it needs: one, unless the guest merges buffers.
func (d *Device) putFrame(s *Sender, ring *virtq.Ring, f *offload.Frame) (Result, error) {
	header := headerOf(d.features)
	size := uint32(len(f.Head) + len(f.Payload) - VnetHdr + header)
	merges := d.features&featureMergeable != 0
	s.pieces, s.chains = s.pieces[:0], s.chains[:0]
	for room := uint32(0); room < size; {
		n := len(s.chains)
		if n > 0 && !merges || len(s.pieces) > maxPieces {
			return TooLong, nil
		}
		if has, err := ring.Has(n + 1); err != nil || !has {
			return Full, err
		}
		var c virtq.Chain
		var err error
		if c, s.pieces, err = ring.Chain(n, true, s.pieces); err != nil {
			return Down, err
		}
		s.chains = append(s.chains, c)
		if room += c.Len; room < c.Len {
			room = size
		}
	}
	if d.features&featureGuestCSum == 0 {
		f.Head[0] = 0 // virtio 1.2, 5.1.6.4.1
	}
	binary.LittleEndian.PutUint16(f.Head[offload.HeaderLen:], uint16(len(s.chains)))
	s.scatter(d.mem, f.Head[:header], f.Head[VnetHdr:], f.Payload)
	for _, c := range s.chains {
		n := min(c.Len, size)
		ring.Use(c.Head, n)
		size -= n
	}
	return Sent, nil
}

// scatter copies parts one after the other to the pieces.
func (s *Sender) scatter(mem *guestmem.Memory, parts ...[]byte) {
	to := s.pieces
	for _, part := range parts {
		for len(part) > 0 {
			n := mem.Write(to[0], part)
			part = part[n:]
			if to[0] = to[0][n:]; len(to[0]) == 0 {
				to = to[1:]
			}
		}
	}
}

// Tick is called about once a second. It ends sessions whose frontend keeps a goroutine waiting
// that wakes its guest.
func (d *Device) Tick() {
	if d.unblock(d.ticks.Add(1) - 1) {
		d.fail(errHeld)
	}
}

// unblock ends writes to eventfds that have been waiting since before the tick, and reports whether
// there were any.
func (d *Device) unblock(tick int64) (held bool) {
	for i := range d.rings {
		if e := d.rings[i].call.Load(); e != nil && e.unblock(tick) {
			held = true
		}
	}
	return held
}
