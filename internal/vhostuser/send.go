package vhostuser

import (
	"encoding/binary"
	"runtime/debug"
	"slices"

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
	Lost            // the memory of the guest that has sent it is gone
)

// A Sender puts frames into guests' memory for one goroutine. It does not allocate once its buffers
// have grown.
type Sender struct {
	// From is where the frames come from, with the Rests of its batch. It is nil for frames that do
	// not come from a guest's memory.
	From *Pair

	header [longHdr]byte
	pieces [][]byte
	chains []virtq.Chain
	owed   []debt
}

// A debt is a ring whose driver is to be woken when the batch is done. To wake it may take a while,
// if its frontend is hostile, and the lock of From is held until then.
type debt struct {
	dev  *Device
	ring *vring
}

func (s *Sender) owe(d *Device, r *vring) {
	if one := (debt{d, r}); !slices.Contains(s.owed, one) {
		s.owed = append(s.owed, one)
	}
}

// wake wakes the drivers that are owed it. The caller holds no lock.
func (s *Sender) wake() {
	for _, o := range s.owed {
		o.dev.mu.RLock()
		o.ring.interrupt()
		o.dev.mu.RUnlock()
	}
	clear(s.owed) // removed devices must not be kept alive
	s.owed = s.owed[:0]
}

// Send puts frames into the guest's ring and sets the result of each, up to the length of results.
// The pieces of a frame are the vnet header of offload.HeaderLen bytes and the Ethernet frame; Head
// has at least the header. Send does not change them, and never waits for the guest. If s.From is
// not nil, its Done wakes the guest.
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
	switch {
	case !interrupts:
	case s.From != nil:
		s.owe(d, r)
	default:
		r.interrupt()
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
	for next := 0; next >= 0 && err == nil; {
		next, interrupts, err = d.putFrom(next, s, r.ring, list, results)
	}
	if err != nil {
		fill(results, Down)
		d.fail(err)
	}
	return interrupts
}

// putFrom puts the frames from next on into a ring, publishes them, and returns -1, with what
// publish returns. It returns early, with the index behind it, if a frame could not be read.
// Nothing of that one is in the ring.
func (d *Device) putFrom(next int, s *Sender, ring *virtq.Ring, list []offload.Frame, results []Result) (
	then int, interrupts bool, err error,
) {
	defer func() {
		f := recover()
		switch {
		case f == nil:
		case s.From != nil && !d.mem.Has(f):
			s.From.dev.fail(s.From.dev.mem.Fault(f))
			results[next], then = Lost, next+1
		default:
			err = d.mem.Fault(f)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for ; next < len(list); next++ {
		f := &list[next]
		if !takes(d.features, f.Head) {
			results[next] = Rejected
			continue
		}
		if results[next], err = d.putFrame(s, ring, f); err != nil {
			return next, false, err
		}
	}
	return -1, publish(ring), nil
}

// publish makes the used chains of a ring, if there are any, known to the guest, and reports
// whether it wants an interrupt. The caller handles faults.
func publish(ring *virtq.Ring) (interrupts bool) {
	if !ring.Unpublished() {
		return false
	}
	ring.Publish()
	return ring.Interrupts()
}

// maxPieces limits the pieces of memory for one frame: a guest that offers buffers of a byte each
// must not keep other ports' goroutines busy.
const maxPieces = 1024

// putFrame copies a frame into the guest's next buffer, or into more of them.
func (d *Device) putFrame(s *Sender, ring *virtq.Ring, f *offload.Frame) (Result, error) {
	header := headerOf(d.features)
	size := uint32(f.Len() - offload.HeaderLen + header)
	if has, err := ring.Has(1); err != nil || !has {
		return Full, err
	}
	id, to := ring.Single(0, true)
	if uint32(len(to)) < size {
		return d.putParts(s, ring, f, header, size)
	}
	to = to[:size]
	d.putHeader(to, f.Head, 1)
	at := header + copy(to[header:], f.Head[offload.HeaderLen:])
	if len(f.Payload) > 0 {
		at += copy(to[at:], f.Payload)
	}
	for _, piece := range f.Rest {
		at += copy(to[at:], piece)
	}
	d.mem.Wrote(to)
	ring.Use(id, size)
	return Sent, nil
}

// putHeader writes the vnet header of a frame that takes that many chains, in the guest's format.
func (d *Device) putHeader(to, head []byte, chains int) {
	word, last := binary.LittleEndian.Uint64(head), binary.LittleEndian.Uint16(head[8:])
	if d.features&featureGuestCSum == 0 {
		word &^= 0xff // no flags (virtio 1.2, 5.1.6.4.1)
	}
	binary.LittleEndian.PutUint64(to, word)
	if headerOf(d.features) == legacyHdr {
		binary.LittleEndian.PutUint16(to[8:], last)
		return
	}
	binary.LittleEndian.PutUint32(to[8:], uint32(last)|uint32(chains)<<16)
}

// putParts copies a frame into as many chains as it needs: one, unless the guest merges buffers.
func (d *Device) putParts(s *Sender, ring *virtq.Ring, f *offload.Frame, header int, size uint32) (Result, error) {
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
	d.putHeader(s.header[:], f.Head, len(s.chains))
	s.scatter(d.mem, f.Rest, s.header[:header], f.Head[offload.HeaderLen:], f.Payload)
	for _, c := range s.chains {
		n := min(c.Len, size)
		ring.Use(c.Head, n)
		size -= n
	}
	return Sent, nil
}

// scatter copies parts, and then the rest, one after the other to the pieces.
func (s *Sender) scatter(mem *guestmem.Memory, rest [][]byte, parts ...[]byte) {
	to := s.pieces
	for _, part := range parts {
		to = spread(mem, to, part)
	}
	for _, part := range rest {
		to = spread(mem, to, part)
	}
}

// spread copies a part to pieces, and returns those that have room left.
func spread(mem *guestmem.Memory, to [][]byte, part []byte) [][]byte {
	for len(part) > 0 {
		n := copy(to[0], part)
		mem.Wrote(to[0][:n])
		part = part[n:]
		if to[0] = to[0][n:]; len(to[0]) == 0 {
			to = to[1:]
		}
	}
	return to
}

// Tick is called about once a second. It ends sessions whose frontend keeps a goroutine waiting
// that wakes its guest.
func (d *Device) Tick() {
	if d.unblock() {
		d.fail(errHeld)
	}
}

// unblock ends writes to eventfds that wait, and reports whether there were any.
func (d *Device) unblock() (held bool) {
	for i := range d.rings {
		if e := d.rings[i].call.Load(); e != nil && e.unblock() {
			held = true
		}
	}
	return held
}
