package frontend

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Header is the length of the vnet header before each frame.
const Header = 12

// frameRoom is the usual room in bytes for a frame that is sent.
const frameRoom = 68 << 10

// A Pair is a pair of rings with the driver's state.
type Pair struct {
	Mute bool // give no kicks

	f      *Frontend
	n      int
	rx, tx side
}

// side is a ring. Offsets are those in the memory.
type side struct {
	index             int
	start, end        int // of all of it in the memory
	desc, avail, used int
	tables            int // an indirect table for each descriptor
	buffers           int
	room              int // of a buffer
	posted, seen      uint16
	free              []uint16
	kick, call        int
}

// layOut places the pair's rings and buffers from an offset on, and returns the end.
func (p *Pair) layOut(at int) int {
	take := func(n, align int) int {
		start := (at + align - 1) &^ (align - 1)
		at = start + n
		return start
	}
	size := p.f.Ring
	for _, s := range []*side{&p.rx, &p.tx} {
		s.room, s.index, s.kick, s.call = p.f.Buffer, 2*p.n, -1, -1
		if s == &p.tx {
			s.room, s.index = p.f.Room, 2*p.n+1
		}
		s.desc = take(16*size, 4096)
		s.start = s.desc
		s.avail = take(6+2*size, 2)
		s.used = take(6+8*size, 4096)
		s.tables = take(16*size*64, 16)
		s.buffers = take(s.room*size, 64)
		s.end = at
	}
	return (at + 4095) &^ 4095
}

func (p *Pair) open() (err error) {
	for _, s := range []*side{&p.rx, &p.tx} {
		for _, fd := range []*int{&s.kick, &s.call} {
			if err == nil {
				*fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			}
		}
		for n := range p.f.Ring {
			s.free = append(s.free, uint16(n))
		}
	}
	if p.f.Polls && err == nil {
		for _, s := range []*side{&p.rx, &p.tx} {
			p.f.mem[s.avail] = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
		}
	}
	if err == nil {
		p.fill()
	}
	return err
}

func (p *Pair) close() {
	for _, s := range []*side{&p.rx, &p.tx} {
		for _, fd := range []*int{&s.kick, &s.call} {
			if *fd >= 0 {
				_ = unix.Close(*fd)
			}
			*fd = -1
		}
	}
}

// start sets the rings up, from where their used rings are.
func (p *Pair) start() error {
	for _, s := range []*side{&p.rx, &p.tx} {
		base := p.f.half(s.used + 2)
		if p.f.Forget {
			base = 0
		}
		i := uint32(s.index)
		err := errors.Join(
			p.f.Tell(SetVringNum, Halves(i, uint32(p.f.Ring))),
			p.f.Tell(SetVringBase, Halves(i, uint32(base))),
			p.place(s, 0),
			p.f.Tell(SetVringCall, Words(uint64(i)), s.call),
			p.f.Tell(SetVringKick, Words(uint64(i)), s.kick),
		)
		if err == nil && p.f.Features&Protocol != 0 {
			err = p.f.Tell(SetVringEnable, Halves(i, 1))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place says where a ring is; flags has 1 if writes to its used ring are logged.
func (p *Pair) place(s *side, flags uint32) error {
	user := p.f.User()
	return p.f.Tell(SetVringAddr, append(Halves(uint32(s.index), flags),
		Words(user+uint64(s.desc), user+uint64(s.used), user+uint64(s.avail), uint64(GuestBase+s.used))...))
}

// Rekick gives the ring from the driver its kick file again, while the ring is in use.
func (p *Pair) Rekick() error {
	return p.f.Tell(SetVringKick, Words(uint64(p.tx.index)), p.tx.kick)
}

// Base stops a ring and returns its next available entry: the ring to the driver, or from it.
func (p *Pair) Base(from bool) (uint16, error) {
	index := p.rx.index
	if from {
		index = p.tx.index
	}
	v, err := p.f.Ask(GetVringBase, Halves(uint32(index), 0))
	return uint16(v >> 32), err
}

// Events returns the eventfds of the ring to the driver.
func (p *Pair) Events() (kick, call int) { return p.rx.kick, p.rx.call }

// half reads a word that the backend may write.
func (f *Frontend) half(at int) uint16 {
	low := at & 2
	word := binary.NativeEndian.AppendUint32(nil, atomic.LoadUint32((*uint32)(unsafe.Pointer(&f.mem[at-low]))))
	return binary.LittleEndian.Uint16(word[low:])
}

// publish makes entries of an available ring known, and kicks unless the backend wants no kick.
func (p *Pair) publish(s *side, n int) {
	f := p.f
	was := s.posted
	s.posted += uint16(n)
	binary.LittleEndian.PutUint16(f.mem[s.avail+2:], s.posted)
	fence.Add(1) // the index is seen before the backend's wish is read
	if !p.Mute && f.wantsKick(s, was) {
		p.Kick(s.index%2 == 1)
	}
}

// wantsKick reports whether the backend wants a kick for what was offered since that index.
func (f *Frontend) wantsKick(s *side, was uint16) bool {
	if f.Features&EventIndex != 0 {
		return s.posted-f.half(s.used+4+8*f.Ring)-1 < s.posted-was
	}
	return f.half(s.used)&1 == 0
}

// WantsKick reports whether the backend waits for the next frame that is sent.
func (p *Pair) WantsKick() bool {
	if f := p.f; f.Features&EventIndex != 0 {
		return f.half(p.tx.used+4+8*f.Ring) == p.tx.posted
	}
	return p.f.half(p.tx.used)&1 == 0
}

var fence atomic.Uint32

// Kick notifies the backend about the ring from the driver, or the one to it.
func (p *Pair) Kick(from bool) {
	s := &p.rx
	if from {
		s = &p.tx
	}
	_, _ = unix.Write(s.kick, one[:])
}

var one = [8]byte{1}

func (p *Pair) descriptor(at int, addr, length int, flags, next uint16) {
	b := p.f.mem[at : at+16]
	binary.LittleEndian.PutUint64(b, uint64(GuestBase+addr))
	binary.LittleEndian.PutUint32(b[8:], uint32(length))
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

const (
	chained  = 1
	writable = 2
	indirect = 4
)

// offer puts a chain into the available ring.
func (s *side) offer(f *Frontend, n int, head uint16) {
	at := s.avail + 4 + 2*(int(s.posted+uint16(n))&(f.Ring-1))
	binary.LittleEndian.PutUint16(f.mem[at:], head)
}

// fill offers all free buffers for frames.
func (p *Pair) fill() {
	s := &p.rx
	n := 0
	for ; len(s.free) > 0; n++ {
		id := s.free[0]
		s.free = s.free[1:]
		p.descriptor(s.desc+16*int(id), s.buffers+s.room*int(id), s.room, writable, 0)
		s.offer(p.f, n, id)
	}
	if n > 0 {
		p.publish(s, n)
	}
}

// Receive returns a frame with its header, or false if there is none. It offers the buffers again.
func (p *Pair) Receive() ([]byte, bool) {
	s, f := &p.rx, p.f
	have := int(f.half(s.used+2) - s.seen)
	if have == 0 {
		return nil, false
	}
	var frame []byte
	for n, count := 0, 1; n < count && n < have; n++ {
		at := s.used + 4 + 8*(int(s.seen)&(f.Ring-1))
		id, length := int(binary.LittleEndian.Uint32(f.mem[at:])), int(binary.LittleEndian.Uint32(f.mem[at+4:]))
		buffer := f.mem[s.buffers+s.room*id:]
		frame = append(frame, buffer[:length]...)
		if n == 0 && f.Features&Mergeable != 0 {
			count = int(binary.LittleEndian.Uint16(frame[10:]))
		}
		s.free = append(s.free, uint16(id))
		s.seen++
	}
	if f.Features&EventIndex != 0 {
		binary.LittleEndian.PutUint16(f.mem[s.avail+4+2*f.Ring:], s.seen)
	}
	p.fill()
	return frame, true
}

// Await waits until there is a frame, and returns it.
func (p *Pair) Await(within time.Duration) ([]byte, bool) {
	for end := time.Now().Add(within); ; {
		if frame, ok := p.Receive(); ok || time.Now().After(end) {
			return frame, ok
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(p.rx.call), Events: unix.POLLIN}}, 5)
		_, _ = unix.Read(p.rx.call, make([]byte, 8))
	}
}

// Send sends frames, each with a header of Header bytes (10 for an old driver), and returns how
// many the ring had room for.
func (p *Pair) Send(frames ...[]byte) (sent int) {
	s, f := &p.tx, p.f
	p.reclaim()
	n := 0
	for _, frame := range frames {
		pieces := min(max(1, f.Pieces), len(frame))
		need := pieces
		if f.Indirect {
			need = 1
		}
		if len(s.free) < need {
			break
		}
		ids := s.free[:need]
		s.free = s.free[need:]
		at := s.buffers + s.room*int(ids[0])
		copy(f.mem[at:at+s.room], frame)
		if f.Indirect {
			table := s.tables + 16*64*int(ids[0])
			p.chain(frame, at, pieces, func(i int) (int, uint16) { return table + 16*i, uint16(i + 1) })
			p.descriptor(s.desc+16*int(ids[0]), table, 16*pieces, indirect, 0)
		} else {
			p.chain(frame, at, pieces, func(i int) (int, uint16) {
				return s.desc + 16*int(ids[i]), ids[min(i+1, need-1)]
			})
		}
		s.offer(f, n, ids[0])
		n++
	}
	if n > 0 {
		p.publish(s, n)
	}
	return n
}

// SendLost sends a frame of several pages, of which only the first ones exist: the file of the
// memory ends there. The frontend can only be closed afterwards.
func (p *Pair) SendLost(frame []byte) error {
	s, f := &p.tx, p.f
	id := s.free[0]
	s.free = s.free[1:]
	at := s.buffers + s.room*int(id)
	copy(f.mem[at:at+s.room], frame)
	if err := unix.Ftruncate(f.fd, int64(at+8191)&^4095); err != nil {
		return err
	}
	p.descriptor(s.desc+16*int(id), at, len(frame), 0, 0)
	s.offer(f, 0, id)
	p.publish(s, 1)
	return nil
}

// chain writes the descriptors of a frame that is at an offset.
func (p *Pair) chain(frame []byte, at, pieces int, place func(i int) (at int, next uint16)) {
	size := (len(frame) + pieces - 1) / pieces
	for i := range pieces {
		start := min(i*size, len(frame)-pieces+i)
		end := min((i+1)*size, len(frame)-pieces+i+1)
		if i == pieces-1 {
			end = len(frame)
		}
		d, next := place(i)
		flags := uint16(chained)
		if i == pieces-1 {
			flags, next = 0, 0
		}
		p.descriptor(d, at+start, end-start, flags, next)
	}
}

// reclaim takes the chains back that the backend has used.
func (p *Pair) reclaim() {
	s, f := &p.tx, p.f
	for ; s.seen != f.half(s.used+2); s.seen++ {
		at := s.used + 4 + 8*(int(s.seen)&(f.Ring-1))
		id := uint16(binary.LittleEndian.Uint32(f.mem[at:]))
		for {
			d := f.mem[s.desc+16*int(id):]
			s.free = append(s.free, id)
			if binary.LittleEndian.Uint16(d[12:])&chained == 0 {
				break
			}
			id = binary.LittleEndian.Uint16(d[14:])
		}
	}
}

// Again sends the n frames once more that were sent first, of a ring that was filled once and that
// the backend has used all of since. Like Ignore, it costs next to nothing, for benchmarks.
func (p *Pair) Again(n int) {
	p.tx.seen += uint16(n)
	p.publish(&p.tx, n)
}

// Ignore gives the backend the buffers of all received frames again, unread. The backend must have
// used them in the order in which they were offered.
func (p *Pair) Ignore() {
	s := &p.rx
	n := p.f.half(s.used+2) - s.seen
	s.seen += n
	if p.f.Features&EventIndex != 0 {
		binary.LittleEndian.PutUint16(p.f.mem[s.avail+4+2*p.f.Ring:], s.seen)
	}
	p.publish(s, int(n))
}

// InFlight returns how many chains the backend has not used yet.
func (p *Pair) InFlight() int {
	p.reclaim()
	return p.f.Ring - len(p.tx.free)
}

// Corrupt overwrites a word of 16 bits of the ring from the driver: avail.idx.
func (p *Pair) Corrupt(index uint16) {
	binary.LittleEndian.PutUint16(p.f.mem[p.tx.avail+2:], index)
	p.Kick(true)
}

// Descriptor writes a descriptor of the ring from the driver and offers it.
func (p *Pair) Descriptor(addr uint64, length uint32, flags, next uint16) {
	s := &p.tx
	b := p.f.mem[s.desc : s.desc+16]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
	s.offer(p.f, 0, 0)
	p.publish(s, 1)
	p.Kick(true)
}
