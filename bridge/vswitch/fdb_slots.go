package vswitch

import (
	"math/bits"
	"sync/atomic"
)

// How the FDB keeps its entries in slots: where a key is, which entry makes room for another one,
// and what goroutines that change a bucket at the same time do. See FDB for the layout.

// inverse returns the inverse of an odd number modulo 2^60, by Newton's iteration. Each step
// doubles the number of correct bits.
func inverse(odd uint64) uint64 {
	x := odd // 3 bits are correct
	for range 5 {
		x *= 2 - odd*x
	}
	return x & keyMask
}

// permute is undone by restore. An xor with a shift by at least half of the bits undoes itself.
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

// place returns a key's bucket and the rest, which are the upper bits of its word.
func (f *FDB) place(k Key) (bucket int, rest uint64) {
	p := f.permute(uint64(k))
	return int(p & (1<<f.bits - 1)), p >> f.bits
}

// keyAt returns the key of the word in a slot.
func (f *FDB) keyAt(slot int, word uint64) Key {
	return Key(f.restore(word>>restShift<<f.bits | uint64(slot/ways)))
}

func (f *FDB) bucket(b int) []atomic.Uint64 { return f.slots[b*ways : (b+1)*ways : (b+1)*ways] }

func holds(word, rest uint64) bool { return word>>restShift == rest && word != 0 }

func portOf(word uint64) int { return int(word&portMask) - 1 }

func wordOf(rest uint64, port int) uint64 { return rest<<restShift | uint64(port+1) }

// find returns an address's slot in its bucket and the slot's word. The slot is -1 if the address
// has none.
func (f *FDB) find(b int, rest uint64) (slot int, word uint64) {
	slots := f.bucket(b)
	for i := range slots {
		if w := slots[i].Load(); holds(w, rest) {
			return i, w
		}
	}
	return -1, 0
}

// insert puts a new address into an empty slot. If all are taken, it evicts an address of a port
// with at least the same share.
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

// replace stores a learned entry in a slot, for a new address or one that moves. Only it checks a
// port's limit. It counts before it compares, so that two queues of a port cannot pass the limit
// together. It reports whether it has stored the entry: if another goroutine has changed the slot,
// the next frame learns the address.
func (f *FDB) replace(b, i int, old, word uint64, now uint32) bool {
	learned, limit := &f.learned[portOf(word)], f.limit[portOf(word)].Load()
	if n := learned.Add(1); limit > 0 && n > limit {
		learned.Add(-1)
		f.refused.Add(1)
		return false
	}
	// Set the time first: Sweep must not see the new address with the old one's time.
	f.seen[b*ways+i].Store(now)
	if !f.bucket(b)[i].CompareAndSwap(old, word) {
		learned.Add(-1)
		return false
	}
	f.count(old, -1)
	f.leave(b*ways+i, old)
	return true
}

// leave reports an entry that is gone (FDB.left).
func (f *FDB) leave(slot int, old uint64) {
	if old != 0 && f.left != nil {
		f.left(f.keyAt(slot, old), portOf(old))
	}
}

// victim returns the slot of a bucket that a new address may take, and its word. The slot is -1 if
// all are static.
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

// share returns how much of the table a port has learned, as a power of two: ports that differ by
// less are equal.
func (f *FDB) share(port int) int { return bits.Len32(uint32(max(0, f.learned[port].Load()))) }

// single removes all but one entry of an address that two goroutines have inserted at once. It
// keeps the static one, or else the first. Each goroutine calls it after its own insert, so that
// the later one sees both.
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
			f.swap(b*ways+kept, keptWord, 0)
			kept, keptWord = i, w
		default:
			f.swap(b*ways+i, w, 0)
		}
	}
}

// swap changes an entry and updates the ports' counts of learned entries, unless another goroutine
// has changed the entry. It reports whether it has changed it.
func (f *FDB) swap(slot int, old, word uint64) bool {
	if !f.slots[slot].CompareAndSwap(old, word) {
		return false
	}
	f.count(old, -1)
	f.count(word, 1)
	f.leave(slot, old)
	return true
}

func (f *FDB) count(word uint64, by int32) {
	if word != 0 && word&staticBit == 0 {
		f.learned[portOf(word)].Add(by)
	}
}
