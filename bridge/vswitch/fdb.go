package vswitch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vmnet/bridge/vswitch/vport"
)

// An FDB is the forwarding database: for each VLAN, it has the port behind which an address was
// seen last. Lookups and learning take no lock and allocate nothing; any number of goroutines may
// do both at once.
//
// It is a table of buckets of one cache line with eight words each. A word is a whole entry, so
// that a reader never sees half of one:
//
//	rest of the key (47 bits or fewer) | static (1) | port+1 (16)
//
// The MAC and the VLAN id form a key of 60 bits. A permutation of the key gives the bucket in its
// low bits, 13 or more, and the rest in the bits above. It is random for each table, so that an
// attacker cannot aim at one bucket. Bucket and rest together determine the key, so that no two
// keys are confused. A full bucket evicts the entry of the port that has learned most; of several,
// the one that was not seen for the longest time. So a port with many addresses cannot push out
// those of the others.
type FDB struct {
	slots []atomic.Uint64
	seen  []atomic.Uint32 // the second in which each slot's address was seen last
	bits  uint            // number of bits that select the bucket
	mul   [2]uint64       // factors of the permutation
	inv   [2]uint64       // their inverses modulo 2^60

	ageing  uint32         // seconds
	now     atomic.Uint32  // seconds, set by Sweep
	learned []atomic.Int32 // entries learned, by port
	limit   []atomic.Int32 // limit of learned, by port; 0 means no limit

	moves, evicted, refused, aged atomic.Uint64

	// left is called after an address has left the table or a port, with locks held; may be nil.
	left func(k Key, port int)

	control sync.Mutex // held while several entries or a static one change
}

// A Key identifies a station in the FDB. The upper 48 bits are its address, the lower 12 bits the
// VLAN id. If the switch does not filter VLANs, the VLAN id of all frames is 1.
type Key uint64

const (
	vidBits = 12
	keyBits = 48 + vidBits
	keyMask = 1<<keyBits - 1

	ways       = 8 // slots in a bucket
	portBits   = 16
	portMask   = 1<<portBits - 1
	staticBit  = 1 << portBits
	restShift  = portBits + 1
	minBits    = keyBits - (64 - restShift) // so that the rest fits
	defaultAge = 300 * time.Second

	// defaultCapacity is a number of addresses. The table for it takes 768 KiB.
	defaultCapacity = 16384
)

// KeyOf joins an address of 6 bytes and a VLAN id of 12 bits.
func KeyOf(mac net.HardwareAddr, vlan uint16) Key {
	return keyOf(macWord(mac), vlan)
}

func keyOf(mac uint64, vlan uint16) Key { return Key(mac<<vidBits | uint64(vlan)) }

// MAC returns the key's address.
func (k Key) MAC() net.HardwareAddr {
	m := k.mac()
	return net.HardwareAddr{byte(m >> 40), byte(m >> 32), byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

func (k Key) mac() uint64 { return uint64(k) >> vidBits }

// VLAN returns the key's VLAN id.
func (k Key) VLAN() uint16 { return uint16(k) & (1<<vidBits - 1) }

// NewFDB makes a table with room for at least capacity addresses; 0 means 16384. It has at least
// four times as many slots, since a full bucket may evict an address before the table is full. An
// address is forgotten if it was not seen for ageing, in whole seconds; 0 means 300 s.
func NewFDB(capacity int, ageing time.Duration) *FDB {
	if capacity <= 0 {
		capacity = defaultCapacity
	}
	if ageing <= 0 {
		ageing = defaultAge
	}
	f := &FDB{
		bits:    minBits,
		ageing:  uint32(max(1, ageing/time.Second)),
		learned: make([]atomic.Int32, vport.MaxPorts),
		limit:   make([]atomic.Int32, vport.MaxPorts),
	}
	for ways<<f.bits < min(4*capacity, vport.MaxAddresses) {
		f.bits++
	}
	f.slots = make([]atomic.Uint64, ways<<f.bits)
	f.seen = make([]atomic.Uint32, ways<<f.bits)
	for i := range f.mul {
		f.mul[i] = rand.Uint64()&keyMask | 1
		f.inv[i] = inverse(f.mul[i])
	}
	return f
}

// ageingTime returns how long an address is kept.
func (f *FDB) ageingTime() time.Duration { return time.Duration(f.ageing) * time.Second }

// Lookup returns the port behind which an address is, or -1 if it is unknown.
func (f *FDB) Lookup(k Key) (port int) {
	b, rest := f.place(k)
	_, w := f.find(b, rest)
	return portOf(w)
}

// Learn records that a frame with that source arrived on a port, whose index is below 1024. It does
// not change static entries.
func (f *FDB) Learn(k Key, port int) {
	b, rest := f.place(k)
	now := f.now.Load()
	i, w := f.find(b, rest)
	if i < 0 {
		f.insert(b, rest, port, now)
		return
	}
	if portOf(w) == port {
		if seen := &f.seen[b*ways+i]; seen.Load() != now { // once a second, not for each frame
			seen.Store(now)
		}
		return
	}
	// A refused move does not refresh the entry's age, so that the entry expires.
	if w&staticBit == 0 && f.replace(b, i, w, wordOf(rest, port), now) {
		f.moves.Add(1)
	}
}

// Refresh records that a learned address was seen behind a port at that time, in seconds. It does
// nothing if the address is not there.
func (f *FDB) Refresh(k Key, port int, now uint32) {
	b, rest := f.place(k)
	if i, w := f.find(b, rest); i >= 0 && portOf(w) == port {
		f.seen[b*ways+i].Store(now)
	}
}

// ErrFDBFull is returned for a static entry whose bucket has only static entries.
var ErrFDBFull = errors.New("the FDB has no room for this static entry")

// AddStatic adds a static entry, which neither ages nor moves. It replaces a learned entry of the
// same address.
func (f *FDB) AddStatic(k Key, port int) error {
	f.control.Lock()
	defer f.control.Unlock()
	b, rest := f.place(k)
	word := wordOf(rest, port) | staticBit
	for range 1000 { // a learner interferes once or twice
		i, old := f.find(b, rest)
		if i < 0 {
			i, old = f.victim(b, f.now.Load())
		}
		if i < 0 {
			break
		}
		if f.swap(b*ways+i, old, word) {
			f.single(b, rest)
			return nil
		}
	}
	return fmt.Errorf("%s in VLAN %d: %w", k.MAC(), k.VLAN(), ErrFDBFull)
}

// staticPort returns the port of an address's static entry, or -1 if it has none.
func (f *FDB) staticPort(k Key) int {
	b, rest := f.place(k)
	if _, w := f.find(b, rest); w&staticBit != 0 {
		return portOf(w)
	}
	return -1
}

// Remove removes an address, even a static one, and reports whether it was in the table.
func (f *FDB) Remove(k Key) bool {
	b, rest := f.place(k)
	return f.remove(b*ways, (b+1)*ways, func(_ int, w uint64) bool { return holds(w, rest) }) > 0
}

// FlushPort removes the learned entries of a port, and with static also its static ones.
func (f *FDB) FlushPort(port int, static bool) {
	f.remove(0, len(f.slots), func(_ int, w uint64) bool { return portOf(w) == port && (static || w&staticBit == 0) })
}

// Prune removes the entries of a port for which gone returns true.
func (f *FDB) Prune(port int, gone func(k Key, static bool) bool) {
	f.remove(0, len(f.slots), func(slot int, w uint64) bool {
		return portOf(w) == port && gone(f.keyAt(slot, w), w&staticBit != 0)
	})
}

// FlushLearned removes all learned entries.
func (f *FDB) FlushLearned() {
	f.remove(0, len(f.slots), func(_ int, w uint64) bool { return w&staticBit == 0 })
}

// Sweep sets the time, in seconds from any start, and removes entries that have aged. Call it once
// a second.
func (f *FDB) Sweep(now uint32) {
	f.now.Store(now)
	f.aged.Add(uint64(f.remove(0, len(f.slots), func(slot int, w uint64) bool {
		// Signed: a learner may have a later time.
		return w&staticBit == 0 && int32(now-f.seen[slot].Load()) >= int32(f.ageing)
	})))
}

// remove removes the entries for which gone returns true, in the slots from from up to to. It
// returns their number.
func (f *FDB) remove(from, to int, gone func(slot int, word uint64) bool) (n int) {
	f.control.Lock()
	defer f.control.Unlock()
	for i := from; i < to; i++ {
		if w := f.slots[i].Load(); w != 0 && gone(i, w) && f.swap(i, w, 0) {
			n++
		}
	}
	return n
}

// LimitPort limits how many addresses are learned behind a port; 0 means no limit.
func (f *FDB) LimitPort(port, addresses int) { f.limit[port].Store(int32(addresses)) }

// An FDBEntry is one entry of a Dump.
type FDBEntry struct {
	Key    Key
	Port   int
	Static bool
	Age    time.Duration // time since it was seen, in whole seconds
}

// Dump lists the table's entries, sorted by key.
func (f *FDB) Dump() []FDBEntry { return f.list(0) }

// Statics is Dump of the static entries alone.
func (f *FDB) Statics() []FDBEntry { return f.list(staticBit) }

// list lists the entries whose words have a bit, or all for 0.
func (f *FDB) list(bit uint64) []FDBEntry {
	var entries []FDBEntry
	now := f.now.Load()
	for i := range f.slots {
		w := f.slots[i].Load()
		if w == 0 || w&bit != bit {
			continue
		}
		entries = append(entries, FDBEntry{
			Key:    f.keyAt(i, w),
			Port:   portOf(w),
			Static: w&staticBit != 0,
			Age:    time.Duration(max(0, int32(now-f.seen[i].Load()))) * time.Second,
		})
	}
	slices.SortFunc(entries, func(a, b FDBEntry) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	return entries
}

// FDBStats counts what happened to addresses since the table was made.
type FDBStats struct {
	Entries int
	Slots   int    // the most entries that the table can have
	Moves   uint64 // moved to another port
	Aged    uint64 // not seen for the ageing time
	Evicted uint64 // replaced by another address
	// not learned: the port is at its limit, or its bucket has only static entries and those of
	// ports with fewer
	Refused uint64
}

// Stats returns the counters.
func (f *FDB) Stats() FDBStats {
	s := FDBStats{
		Slots: len(f.slots), Moves: f.moves.Load(), Aged: f.aged.Load(),
		Evicted: f.evicted.Load(), Refused: f.refused.Load(),
	}
	for i := range f.slots {
		if f.slots[i].Load() != 0 {
			s.Entries++
		}
	}
	return s
}
