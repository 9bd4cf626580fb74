package vswitch

import (
	"net/netip"
	"time"
)

// neighbors are the stations that a tun port knows, by their IP addresses (RFC 826, RFC 4861). The
// table is bounded, and so are the packets that wait in it for an answer. Only what the tun asks
// for, and what asks the tun, has an entry, so that others cannot fill it by answers.
type neighbors struct {
	by      map[netip.Addr]*neighbor
	waiting int // bytes
}

type neighbor struct {
	mac       uint64
	known     bool
	confirmed int64 // when it was heard last, in nanoseconds since the switch's start
	asked     int64 // when it was asked last; 0 if it was not since it was heard
	tries     int   // since it was heard
	used      int64
	packets   [][]byte // that wait for its address, as frames without addresses
}

const (
	maxNeighbors   = 1024
	maxWaiting     = 1 << 20 // bytes of packets that wait for answers
	maxWaitingEach = 16      // packets for one neighbor
	askEvery       = time.Second
	askTries       = 3
	confirmAfter   = 30 * time.Second // after that, a neighbor that is used is asked again
)

func newNeighbors() neighbors { return neighbors{by: map[netip.Addr]*neighbor{}} }

// resolve returns the address of a neighbor for a packet, and whether the neighbor must be asked
// now. Its entry is made if there is none and there is room; else n is nil.
func (t *neighbors) resolve(a netip.Addr, now int64) (n *neighbor, ask bool) {
	n = t.by[a]
	if n == nil {
		if n = t.add(a, now); n == nil {
			return nil, false
		}
	}
	n.used = now
	switch {
	case n.known && now-n.confirmed < int64(confirmAfter):
		return n, false
	case n.asked != 0 && now-n.asked < int64(askEvery):
		return n, false
	}
	return n, t.ask(n, now)
}

// ask reports whether a neighbor may be asked once more, and notes it.
func (t *neighbors) ask(n *neighbor, now int64) bool {
	if n.tries >= askTries {
		return false
	}
	n.tries++
	n.asked = now
	return true
}

// add makes an entry, if need be in place of the one that was not used for the longest time.
func (t *neighbors) add(a netip.Addr, now int64) *neighbor {
	if len(t.by) >= maxNeighbors {
		var oldest netip.Addr
		for b, n := range t.by {
			if at := t.by[oldest]; len(n.packets) == 0 && (at == nil || n.used < at.used) {
				oldest = b
			}
		}
		if !oldest.IsValid() {
			return nil
		}
		delete(t.by, oldest)
	}
	n := &neighbor{used: now}
	t.by[a] = n
	return n
}

// wait has a copy of a packet wait for a neighbor, and reports whether there was room.
func (t *neighbors) wait(n *neighbor, packet []byte) bool {
	if len(n.packets) == maxWaitingEach || t.waiting+len(packet) > maxWaiting {
		return false
	}
	t.waiting += len(packet)
	n.packets = append(n.packets, append([]byte(nil), packet...))
	return true
}

// heard notes the address of a neighbor, and returns the packets that have waited for it. Without
// make, it does nothing for one that has no entry.
func (t *neighbors) heard(a netip.Addr, mac uint64, now int64, make bool) [][]byte {
	n := t.by[a]
	if n == nil && make {
		n = t.add(a, now)
	}
	if n == nil {
		return nil
	}
	n.mac, n.known, n.confirmed, n.asked, n.tries = mac, true, now, 0, 0
	return t.drop(n)
}

// drop returns the packets that wait for a neighbor, which forgets them.
func (t *neighbors) drop(n *neighbor) (packets [][]byte) {
	packets, n.packets = n.packets, nil
	for _, p := range packets {
		t.waiting -= len(p)
	}
	return packets
}

// tick asks neighbors again, and forgets those that have not answered. It calls ask with each
// address to ask, and returns how many packets were dropped, and whether there is more to do later.
func (t *neighbors) tick(now int64, ask func(a netip.Addr, n *neighbor)) (dropped int, more bool) {
	for a, n := range t.by {
		switch {
		case n.asked == 0:
			continue
		case now-n.asked < int64(askEvery):
		case n.tries < askTries:
			t.ask(n, now)
			ask(a, n)
		default:
			dropped += len(t.drop(n))
			delete(t.by, a)
			continue
		}
		more = true
	}
	return dropped, more
}
