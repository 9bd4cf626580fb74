package vswitch

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An FDB is the forwarding database: behind which port an address was seen last, VLAN by VLAN. Look-ups and
// learning take no lock and allocate nothing; any number of goroutines may do both at once.
//
// It is a table of buckets of one cache line, eight words each. A word is an entry as a whole, so that no reader ever
// sees half of one:
//
//	rest of the key (47 bits or fewer) | static (1) | port+1 (16)
//
// MAC and VLAN id are a key of 60 bits. A permutation of these, drawn anew for each table so that nobody outside
// can aim at one bucket, gives the bucket in its low bits, 13 or more; what is left of it is the rest. Both together are the key
// again, and no two keys are taken for one. A full bucket loses the entry that was silent longest of the ports that have learned
// most, so that no port pushes out the others' addresses by many of its own.
type FDB struct {
	slots []atomic.Uint64
	seen  []atomic.Uint32 // the second in which each slot's address was seen last
	bits  uint            // of a key, that number its bucket
	mul   [2]uint64       // of the permutation
	inv   [2]uint64       // their inverses modulo 2^60

	ageing  uint32        // seconds
	now     atomic.Uint32 // seconds, as Sweep says
	learned []atomic.Int32
	limit   []atomic.Int32 // of learned, port by port; 0 is none

	moves, evicted, refused, aged atomic.Uint64

	control sync.Mutex // of whoever changes more than one entry, or a static one
}

// A Key is what the FDB knows a station by: its address in the upper 48 bits, and below them the
// VLAN id in 12, 1 of all frames where the switch does not filter VLANs.
type Key uint64

const (
	vidBits = 12
	keyBits = 48 + vidBits
	keyMask = 1<<keyBits - 1

	ways       = 8 // slots of a bucket
	portBits   = 16
	portMask   = 1<<portBits - 1
	staticBit  = 1 << portBits
	restShift  = portBits + 1
	minBits    = keyBits - (64 - restShift) // so that the rest fits
	maxBits    = 20
	maxPorts   = 1024
	defaultAge = 300 * time.Second

	// defaultCapacity of addresses takes 768 KiB.
	defaultCapacity = 16384
)

// KeyOf joins an address of 6 bytes and a VLAN id of 12 bits.
func KeyOf(mac net.HardwareAddr, vlan uint16) Key {
	return keyOf(macWord(mac), vlan)
}

func keyOf(mac uint64, vlan uint16) Key { return Key(mac<<vidBits | uint64(vlan)) }

// MAC is the key's address.
func (k Key) MAC() net.HardwareAddr {
	m := uint64(k) >> vidBits
	return net.HardwareAddr{byte(m >> 40), byte(m >> 32), byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

// VLAN is the key's VLAN id.
func (k Key) VLAN() uint16 { return uint16(k) & (1<<vidBits - 1) }

// NewFDB makes a table that has room for at least capacity addresses: it has four times as many slots or more, since a full
// bucket may push an address out before the table is full. 0 means 16384. Addresses that were not seen for
// ageing, in whole seconds, are forgotten; 0 means 300 s.
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
		learned: make([]atomic.Int32, maxPorts),
		limit:   make([]atomic.Int32, maxPorts),
	}
	for f.bits < maxBits && ways<<f.bits < 4*capacity {
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

// inverse of an odd number modulo 2^60, by Newton's iteration: each step doubles the bits that are right.
func inverse(odd uint64) uint64 {
	x := odd // right in 3 bits
	for range 5 {
		x *= 2 - odd*x
	}
	return x & keyMask
}

// permute and its inverse: a shift by half of the bits or more undoes itself.
func (f *FDB) permute(k uint64) uint64 {
	k = k * f.mul[0] & keyMask
	k ^= k >> (keyBits / 2)
	k = k * f.mul[1] & keyMask
	return k ^ k>>(keyBits/2)
}

func (f *FDB) restore(k uint64) uint64 {
	k ^= k >> (keyBits / 2)
	k = k * f.inv[1] & keyMask
	k ^= k >> (keyBits / 2)
	return k * f.inv[0] & keyMask
}

// place is where a key belongs: its bucket, and the upper bits of its word.
func (f *FDB) place(k Key) (bucket int, rest uint64) {
	p := f.permute(uint64(k))
	return int(p & (1<<f.bits - 1)), p >> f.bits
}

func (f *FDB) bucket(b int) []atomic.Uint64 { return f.slots[b*ways : (b+1)*ways : (b+1)*ways] }

func holds(word, rest uint64) bool { return word>>restShift == rest && word != 0 }

func portOf(word uint64) int { return int(word&portMask) - 1 }

func wordOf(rest uint64, port int) uint64 { return rest<<restShift | uint64(port+1) }

// Lookup is the port behind which an address is; -1 where that is not known.
func (f *FDB) Lookup(k Key) (port int) {
	b, rest := f.place(k)
	_, w := f.find(b, rest)
	return portOf(w)
}

// Learn notes that a frame with that source has come in by a port, below 1024. What is static stays as it is.
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
	// A refused move leaves the entry its age, so that it is forgotten in its time.
	if w&staticBit == 0 && f.replace(b, i, w, wordOf(rest, port), now) {
		f.moves.Add(1)
	}
}

// insert puts a new address into an empty slot, or where none is, into that of another one of a port that has no smaller share.
func (f *FDB) insert(b int, rest uint64, port int, now uint32) {
	i, old := f.victim(b, now)
	if i < 0 || old != 0 && f.share(portOf(old)) < f.share(port) {
		f.refused.Add(1)
		return
	}
	if !f.replace(b, i, old, wordOf(rest, port), now) {
		return
	}
	if old != 0 {
		f.evicted.Add(1)
	}
	f.single(b, rest)
}

// replace makes a learned entry of a slot's word, whether the address is new or moves: the one
// place where a port's limit is checked. It counts before it looks, so that two queues of a port
// cannot pass the limit together. Where another goroutine was faster it reports false, and the next
// frame learns the address.
func (f *FDB) replace(b, i int, old, word uint64, now uint32) bool {
	learned, limit := &f.learned[portOf(word)], f.limit[portOf(word)].Load()
	if n := learned.Add(1); limit > 0 && n > limit {
		learned.Add(-1)
		f.refused.Add(1)
		return false
	}
	// First the time: the sweeper must not find the new address with that of the old one.
	f.seen[b*ways+i].Store(now)
	if !f.bucket(b)[i].CompareAndSwap(old, word) {
		learned.Add(-1)
		return false
	}
	f.count(old, -1)
	return true
}

// victim is the slot of a bucket that a new address may have, and what is in it; -1 where all are static.
func (f *FDB) victim(b int, now uint32) (slot int, word uint64) {
	slot = -1
	var most int
	var oldest uint32
	slots := f.bucket(b)
	for i := range slots {
		w := slots[i].Load()
		if w == 0 {
			return i, 0
		}
		if w&staticBit != 0 {
			continue
		}
		share, age := f.share(portOf(w)), now-f.seen[b*ways+i].Load()
		if slot < 0 || share > most || share == most && age > oldest {
			slot, word, most, oldest = i, w, share, age
		}
	}
	return slot, word
}

// share is how much of the table a port has learned, in powers of two: ports that differ by less are alike.
func (f *FDB) share(port int) int { return bits.Len32(uint32(max(0, f.learned[port].Load()))) }

// single leaves one entry of an address that two goroutines have put in at once: the static one, else the first.
// Each calls it after its own is in, so that the later of the two sees both.
func (f *FDB) single(b int, rest uint64) {
	slots := f.bucket(b)
	kept, keptWord := -1, uint64(0)
	for i := range slots {
		w := slots[i].Load()
		switch {
		case !holds(w, rest):
		case kept < 0:
			kept, keptWord = i, w
		case w&staticBit != 0 && keptWord&staticBit == 0:
			f.swap(&slots[kept], keptWord, 0)
			kept, keptWord = i, w
		default:
			f.swap(&slots[i], w, 0)
		}
	}
}

// swap changes an entry, unless somebody else has, and counts the learned ones of each port.
func (f *FDB) swap(slot *atomic.Uint64, old, word uint64) bool {
	if !slot.CompareAndSwap(old, word) {
		return false
	}
	f.count(old, -1)
	f.count(word, 1)
	return true
}

func (f *FDB) count(word uint64, by int32) {
	if word != 0 && word&staticBit == 0 {
		f.learned[portOf(word)].Add(by)
	}
}

// ErrFDBFull is a static entry for which its bucket has no room, since all others in it are static too.
var ErrFDBFull = errors.New("the FDB has no room for one more static entry there")

// AddStatic notes an address for good: it neither ages nor moves. A learned entry of it becomes static.
func (f *FDB) AddStatic(k Key, port int) error {
	f.control.Lock()
	defer f.control.Unlock()
	b, rest := f.place(k)
	word := wordOf(rest, port) | staticBit
	for range 1000 { // a learner is in the way once or twice
		i, old := f.find(b, rest)
		if i < 0 {
			i, old = f.victim(b, f.now.Load())
		}
		if i < 0 {
			break
		}
		if f.swap(&f.bucket(b)[i], old, word) {
			f.single(b, rest)
			return nil
		}
	}
	return fmt.Errorf("%s in VLAN %d: %w", k.MAC(), k.VLAN(), ErrFDBFull)
}

// staticPort is the port behind which an address is for good; -1 for none.
func (f *FDB) staticPort(k Key) int {
	b, rest := f.place(k)
	if _, w := f.find(b, rest); w&staticBit != 0 {
		return portOf(w)
	}
	return -1
}

// find is an address's slot in its bucket, and what is in it; -1 where it has none.
func (f *FDB) find(b int, rest uint64) (slot int, word uint64) {
	slots := f.bucket(b)
	for i := range slots {
		if w := slots[i].Load(); holds(w, rest) {
			return i, w
		}
	}
	return -1, 0
}

// Remove forgets an address, a static one too, and tells whether it was there.
func (f *FDB) Remove(k Key) bool {
	b, rest := f.place(k)
	return f.remove(b*ways, (b+1)*ways, func(_ int, w uint64) bool { return holds(w, rest) }) > 0
}

// FlushPort forgets what was learned behind a port, and with static also what was told.
func (f *FDB) FlushPort(port int, static bool) {
	f.remove(0, len(f.slots), func(_ int, w uint64) bool { return portOf(w) == port && (static || w&staticBit == 0) })
}

// FlushLearned forgets all that was learned.
func (f *FDB) FlushLearned() {
	f.remove(0, len(f.slots), func(_ int, w uint64) bool { return w&staticBit == 0 })
}

// Sweep tells what time it is, in seconds from any start, and forgets what has aged. Call it once a second.
func (f *FDB) Sweep(now uint32) {
	f.now.Store(now)
	f.aged.Add(uint64(f.remove(0, len(f.slots), func(slot int, w uint64) bool {
		// Signed: a learner may be ahead of us.
		return w&staticBit == 0 && int32(now-f.seen[slot].Load()) >= int32(f.ageing)
	})))
}

// remove forgets those entries of the slots from..to that are gone, and counts them.
func (f *FDB) remove(from, to int, gone func(slot int, word uint64) bool) (n int) {
	f.control.Lock()
	defer f.control.Unlock()
	for i := from; i < to; i++ {
		if w := f.slots[i].Load(); w != 0 && gone(i, w) && f.swap(&f.slots[i], w, 0) {
			n++
		}
	}
	return n
}

// LimitPort bounds how many addresses are learned behind a port; 0 lifts the bound.
func (f *FDB) LimitPort(port, addresses int) { f.limit[port].Store(int32(addresses)) }

// An FDBEntry is one address of a Dump.
type FDBEntry struct {
	Key    Key
	Port   int
	Static bool
	Age    time.Duration // since it was seen, in whole seconds
}

// Dump lists what the table has, in the order of the keys.
func (f *FDB) Dump() []FDBEntry {
	var entries []FDBEntry
	now := f.now.Load()
	for i := range f.slots {
		w := f.slots[i].Load()
		if w == 0 {
			continue
		}
		entries = append(entries, FDBEntry{
			Key:    Key(f.restore(w>>restShift<<f.bits | uint64(i/ways))),
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

// FDBStats count what happened to addresses since the table was made.
type FDBStats struct {
	Entries int    `json:"entries"`
	Slots   int    `json:"slots"`   // of the table: it never has more entries
	Moves   uint64 `json:"moves"`   // to another port
	Aged    uint64 `json:"aged"`    // not seen for the time of ageing
	Evicted uint64 `json:"evicted"` // pushed out by another address
	Refused uint64 `json:"refused"` // not learned: the port has its limit, or static ones or those of ports with fewer are in the way
}

// Stats counts.
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
