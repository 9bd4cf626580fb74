package vswitch

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
	"time"
)

// The switch detects a loop by its effect: a frame that was flooded arrives again on another port,
// over and over. The switch remembers the frames that it has flooded in the last second, and counts
// at each port those that arrived first on another port. It stops a port with too many of them for
// a while: no frame passes in or out.
//
// Nothing but a loop does that. A station that roams, migrates or takes over an address (VRRP,
// bonds) sends new frames, and the same frame on two ports at most a few times a second. A frame
// that a transparent firewall forwards into another VLAN counts as a different frame. An address
// also moves between ports in a loop, but that proves nothing, so the switch does not use it.

const (
	echoSlots    = 4096             // number of frames that are remembered
	echoBytes    = 224              // bytes that are hashed of each frame, after addresses and tag: frame.data has them
	echoWindow   = time.Second      // how long a frame is remembered
	echoLimit    = 64               // echoes on a port in one window that prove a loop
	hairpinLimit = 1024             // the same for a hairpin port, which receives its own frames
	loopSettle   = time.Second / 4  // after a stop, how long frames in flight are not counted
	loopFirst    = 10 * time.Second // how long the first stop of a port lasts
	loopLongest  = 5 * time.Minute  // the longest stop: each is twice as long while the loop persists
)

// echoes remembers frames that were flooded. A slot is one atomic word, so that it needs no lock:
//
//	upper half of the frame's hash (32) | port+1 (11) | time in 2^20 ns, which wraps around (21)
//
// A frame replaces the previous one in its slot, unless that is the same frame.
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

// again reports whether the frame has arrived first on another port in the last second; now is in
// nanoseconds. It remembers the first port as long as that one keeps receiving the frame. For a
// hairpin port, any repeated frame counts.
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
	return known && p.set.Load().cfg.Hairpin
}

// hash hashes the parts of a frame that do not change in a loop. It includes the VLAN but not the
// tag itself, which differs between ports of a switch that filters VLANs.
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
	more := (uint64(vlan)<<32 | uint64(len(rest)+f.more)) * odd
	return bits.RotateLeft64(maphash.Bytes(e.seed, addresses), 1) ^
		maphash.Bytes(e.seed, rest[:min(len(rest), echoBytes)]) ^ more
}

// A stop is the loop detection's state for one port. Times are in nanoseconds since the switch's
// start.
type stop struct {
	window atomic.Int64 // number of the current window
	echoes atomic.Int32 // echoes in that window

	until  atomic.Int64 // time until which the port is stopped; 0 before the first stop
	length atomic.Int64 // length of the last stop
	loops  atomic.Uint64
}

func (s *stop) stopped(now int64) bool { return s.until.Load() > now }

// left returns how long the port stays stopped. It is negative afterwards.
func (s *stop) left(now int64) time.Duration { return time.Duration(s.until.Load() - now) }

// count counts an echo and reports whether the limit is reached.
func (s *stop) count(now int64, limit int32) bool {
	window := now / int64(echoWindow)
	if old := s.window.Load(); old != window && s.window.CompareAndSwap(old, window) {
		s.echoes.Store(0)
	}
	return s.echoes.Add(1) >= limit
}

// begin stops the port. If the loop has outlasted the previous stop, the new one is twice as long.
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

// looped checks whether a frame that is about to be flooded has come back. It reports whether it
// has stopped the port, so that the frame must be dropped.
func (r *receiver) looped(f *frame) bool {
	sw, p, now, limit := r.sw, r.port, r.clock.now(), int32(echoLimit)
	set := p.set.Load()
	if set.cfg.Hairpin {
		limit = hairpinLimit
	}
	if !sw.echoes.again(f, r.ports.filters, p, now) || set.cfg.NoLoopGuard || !p.stop.count(now, limit) {
		return false
	}
	// Stopping one port breaks the loop. Frames in flight would otherwise stop the other ports
	// too.
	settled := sw.settled.Load()
	if now < settled || !sw.settled.CompareAndSwap(settled, now+int64(loopSettle)) {
		return false
	}
	length := p.stop.begin(now)
	p.forget()
	sw.fast.revoke(p)
	sw.notice("port %s is stopped for %v: there is a loop, since frames from other ports arrive on it again",
		p.name, length)
	return true
}
