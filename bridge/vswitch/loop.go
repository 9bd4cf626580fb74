package vswitch

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
	"time"
)

// A loop is noticed by what it does: a frame that was flooded comes in again, by another port, and
// that again and again. The switch remembers the frames that it has flooded in the last second, and
// counts at each port those that another port has brought first. A port with too many is stopped
// for a while: no frame passes in or out.
//
// Nothing else does that. A station that roams, migrates or takes over an address (VRRP, bonds)
// sends new frames, and the same frame by two ports a few times a second at most. What a
// transparent firewall passes on into another VLAN is another frame. That an address moves between
// ports, as it does in a loop, proves nothing, so it is not asked.

const (
	echoSlots    = 4096             // of frames that are remembered
	echoBytes    = 256              // of each frame, behind its addresses and tag
	echoWindow   = time.Second      // for which they are
	echoLimit    = 64               // echoes of a port in a window that are a loop
	hairpinLimit = 1024             // of equal frames of a port that gets its own back
	loopSettle   = time.Second / 4  // after a stop, in which what is under way counts nowhere
	loopFirst    = 10 * time.Second // for which a port is stopped, and twice as long each time that
	loopLongest  = 5 * time.Minute  // the loop is still there afterwards
)

// echoes are frames that were flooded. A slot is one atomic word, so that it needs no lock:
//
//	upper half of the frame's hash (32) | port+1 (11) | time in 2^20 ns, which wraps around (21)
//
// What falls into a slot replaces what is there, unless that is the same frame.
type echoes struct {
	seed  maphash.Seed
	slots [echoSlots]atomic.Uint64
}

const (
	echoTimeBits = 21
	echoTimeMask = 1<<echoTimeBits - 1
	echoPortMask = 1<<11 - 1
	echoTick     = 20
)

func newEchoes() *echoes { return &echoes{seed: maphash.MakeSeed()} }

// again reports whether the port is not the first that has brought the frame in the last second;
// now is in nanoseconds. It remembers the first for as long as that brings the frame. Where frames
// go back to the port that they came from, it is so of any frame that comes again.
func (e *echoes) again(f *frame, filters bool, p *Port, now int64) bool {
	hash := e.hash(f, filters)
	slot := &e.slots[hash%echoSlots]
	old, at := slot.Load(), uint64(now)>>echoTick&echoTimeMask
	word := hash>>32<<32 | uint64(p.index+1)<<echoTimeBits | at
	known := old != 0 && old>>32 == word>>32 && (at-old)&echoTimeMask < uint64(echoWindow)>>echoTick
	first := old >> echoTimeBits & echoPortMask
	if known && first != uint64(p.index+1) {
		return true
	}
	slot.Store(word)
	return known && p.cfg.Hairpin
}

// hash is of what stays the same of a frame in a loop: with its VLAN, but where the switch filters,
// without the tag, which differs from port to port.
func (e *echoes) hash(f *frame, filters bool) uint64 {
	b := f.ether()
	addresses, rest := b[:macsLen], b[macsLen:]
	if f.tagged {
		rest = rest[tagLen:]
	}
	vlan := f.vid
	if !filters {
		vlan = f.tagVID()
	}
	const odd = 0x9e37_79b9_7f4a_7c15 // spreads a small number
	more := (uint64(vlan)<<32 | uint64(len(rest))) * odd
	return bits.RotateLeft64(maphash.Bytes(e.seed, addresses), 1) ^ maphash.Bytes(e.seed, rest[:min(len(rest), echoBytes)]) ^ more
}

// A stop is what a port's loops have led to. Times are nanoseconds since the switch's start.
type stop struct {
	window atomic.Int64 // in which echoes are counted
	echoes atomic.Int32 // of the window

	until  atomic.Int64 // the port is stopped; 0 before the first time
	length atomic.Int64 // of the last time
	loops  atomic.Uint64
}

func (s *stop) stopped(now int64) bool { return s.until.Load() > now }

// left is how long the port stays stopped; negative after that.
func (s *stop) left(now int64) time.Duration { return time.Duration(s.until.Load() - now) }

// count counts one more echo, and reports whether that is too many.
func (s *stop) count(now int64, limit int32) bool {
	window := now / int64(echoWindow)
	if old := s.window.Load(); old != window && s.window.CompareAndSwap(old, window) {
		s.echoes.Store(0)
	}
	return s.echoes.Add(1) >= limit
}

// begin stops the port, for twice as long as the last time if the loop has outlived that.
func (s *stop) begin(now int64) time.Duration {
	length := int64(loopFirst)
	if last := s.length.Load(); last != 0 && now < s.until.Load()+last {
		length = min(2*last, int64(loopLongest))
	}
	s.length.Store(length)
	s.until.Store(now + length)
	s.loops.Add(1)
	return time.Duration(length)
}

// looped notices that a frame that is to be flooded has come back. Then the port may be stopped,
// and the frame goes nowhere.
func (r *receiver) looped(f *frame) bool {
	sw, p, limit := r.sw, r.port, int32(echoLimit)
	if p.cfg.Hairpin {
		limit = hairpinLimit
	}
	if !sw.echoes.again(f, r.ports.filters, p, r.now) || p.cfg.NoLoopGuard || !p.stop.count(r.now, limit) {
		return false
	}
	// One port is enough to break a loop: others have what is under way, of which each would be
	// stopped too.
	settled := sw.settled.Load()
	if r.now < settled || !sw.settled.CompareAndSwap(settled, r.now+int64(loopSettle)) {
		return false
	}
	length := p.stop.begin(r.now)
	p.forget()
	sw.notice("port %s is stopped for %v: frames that other ports had brought came in by it again, so there is a loop",
		p.name, length)
	return true
}
