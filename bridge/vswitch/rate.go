package vswitch

import (
	"time"

	"vmnet/bridge/portrate"
	"vmnet/bridge/vswitch/offload"
)

// A meter limits bits and frames per second, each by a bucket.
type meter struct {
	limit          portrate.Limit
	byBits, byUnit bucket
}

func (m *meter) set(b portrate.Bucket) {
	m.limit = b.Limit
	if b.Bits != 0 {
		m.byBits.depth = int64(b.BitDepth())
	}
	m.byUnit.depth = int64(b.PacketDepth())
}

// costs returns how many nanoseconds a frame takes of each bucket, of which more bytes follow data.
func (m *meter) costs(data []byte, more int) (bits, frames int64) {
	h, ok := offload.Parse(data)
	if !ok {
		return 0, 0
	}
	size := 0
	if h.GSOType != offload.GSONone {
		size = int(h.GSOSize)
	}
	bytes, n := portrate.Wire(len(data)-vnetLen+more, size)
	if m.limit.Bits != 0 {
		bits = int64(float64(bytes) * 8 * float64(time.Second) / float64(m.limit.Bits))
	}
	if m.limit.Packets != 0 {
		frames = int64(n) * int64(time.Second) / int64(m.limit.Packets)
	}
	return bits, frames
}

// take reports whether a frame may pass. One that a bucket refuses may have cost the other one.
func (m *meter) take(c *clock, data []byte, more int) bool {
	return m.limit.IsZero() || m.pass(c.now(), data, more)
}

// pass is take for a meter that limits anything, and reports whether the frame may pass: take is
// inlined where frames are forwarded.
func (m *meter) pass(now int64, data []byte, more int) bool {
	bits, frames := m.costs(data, more)
	return (frames == 0 || m.byUnit.pass(now, frames)) && (bits == 0 || m.byBits.pass(now, bits))
}

// spend charges frames that have passed, and returns how long to wait until they are balanced. The
// debt is capped at an hour. No batch of valid frames reaches that, so the rate holds whatever is
// in it.
func (m *meter) spend(now int64, frames []frame) (wait time.Duration) {
	var bits, units int64
	for i := range frames {
		b, u := m.costs(frames[i].data, frames[i].more)
		bits, units = bits+b, units+u
	}
	return max(m.byBits.owe(now, bits, time.Hour), m.byUnit.owe(now, units, time.Hour))
}

// maxSlow is how long a port is not read before its settings are looked at again.
const maxSlow = 50 * time.Millisecond

// slow makes the receiver wait if its port is over its rate, until it is not or the port has other
// settings.
func (r *receiver) slow(set *settings, frames []frame) {
	if set.up.limit.IsZero() {
		return
	}
	wait := set.up.spend(r.sw.now(), frames)
	for until := r.sw.now() + int64(wait); wait > 0 && r.port.set.Load() == set; {
		if !r.pause(min(wait, maxSlow)) {
			return
		}
		wait = time.Duration(until - r.sw.now())
	}
}
