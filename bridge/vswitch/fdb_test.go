package vswitch

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vmnet/bridge/vswitch/vport"
)

func TestKeysSurviveThePermutation(t *testing.T) {
	f := NewFDB(0, 0)
	for range 10000 {
		k := rand.Uint64() & keyMask
		if got := f.restore(f.permute(k)); got != k {
			t.Fatalf("%#x is restored as %#x", k, got)
		}
	}
	k := keyOf(0x0254_0a0b_0c0d, 4094)
	if got := KeyOf(k.MAC(), k.VLAN()); got != k || k.MAC().String() != "02:54:0a:0b:0c:0d" || k.VLAN() != 4094 {
		t.Errorf("%#x is %s in VLAN %d", uint64(k), k.MAC(), k.VLAN())
	}
}

// TestFDBAgainstAMap applies the same random operations to an FDB and to a map.
func TestFDBAgainstAMap(t *testing.T) {
	type known struct {
		port   int
		static bool
		seen   uint32
	}
	const ageing = 5
	f, model, now := NewFDB(0, ageing*time.Second), map[Key]known{}, uint32(0)
	keys := make([]Key, 200)
	for i := range keys { // few addresses in few VLANs, so that they recur
		keys[i] = keyOf(uint64(i%50)<<40|uint64(i), uint16(rand.IntN(3)))
	}
	keys[0] = 0 // address and VLAN are all zeros
	for step := range 20000 {
		k, port := keys[rand.IntN(len(keys))], rand.IntN(5)
		old, had := model[k]
		switch rand.IntN(100) {
		case 0:
			if err := f.AddStatic(k, port); err != nil {
				t.Fatal(err)
			}
			model[k] = known{port, true, now}
		case 1:
			if f.Remove(k) != had {
				t.Fatalf("step %d: remove %v: found: %v", step, k.MAC(), had)
			}
			delete(model, k)
		case 2:
			static := rand.IntN(2) == 0
			f.FlushPort(port, static)
			for k, v := range model {
				if v.port == port && (static || !v.static) {
					delete(model, k)
				}
			}
		case 3:
			now++
			f.Sweep(now)
			for k, v := range model {
				if !v.static && now-v.seen >= ageing {
					delete(model, k)
				}
			}
		default:
			f.Learn(k, port)
			if had && old.static {
				port = old.port
			}
			model[k] = known{port, had && old.static, now}
		}
		k = keys[rand.IntN(len(keys))]
		want := -1
		if v, ok := model[k]; ok {
			want = v.port
		}
		if got := f.Lookup(k); got != want {
			t.Fatalf("step %d: %v is behind port %d, want %d", step, k.MAC(), got, want)
		}
		if step%500 != 0 {
			continue
		}
		entries := f.Dump()
		if len(entries) != len(model) || f.Stats().Entries != len(model) {
			t.Fatalf("step %d: %d entries, %+v, want %d", step, len(entries), f.Stats(), len(model))
		}
		learned := [vport.MaxPorts]int32{}
		for _, e := range entries {
			if v := model[e.Key]; v.port != e.Port || v.static != e.Static ||
				(!e.Static && e.Age != time.Duration(now-v.seen)*time.Second) {
				t.Errorf("step %d: %+v, want %+v at %d", step, e, v, now)
			}
			if !e.Static {
				learned[e.Port]++
			}
		}
		for p := range learned {
			if got := f.learned[p].Load(); got != learned[p] {
				t.Errorf("step %d: port %d counts %d, want %d", step, p, got, learned[p])
			}
		}
	}
}

// TestFDBConcurrent lets many goroutines learn, look up and remove addresses. An address must never
// be found behind a port that it was not at, and none may remain in the table twice.
func TestFDBConcurrently(t *testing.T) {
	const addresses, workers = 500, 4
	f := NewFDB(1, time.Second)
	// An address is only ever learned at one of two ports, which its number determines.
	portFor := func(i, turn int) int { return i%100*2 + turn&1 }
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for n := range 10000 {
				i := r.IntN(addresses)
				k := keyOf(uint64(i)*0x10001, uint16(i))
				switch {
				case n%1000 == 0:
					f.FlushPort(r.IntN(200), false)
				case n%100 == 0:
					f.Sweep(uint32(n / 1000))
				case n%101 == 0:
					f.Remove(k)
				default:
					f.Learn(k, portFor(i, r.IntN(2)))
				}
				if got := f.Lookup(k); got >= 0 && got != portFor(i, 0) && got != portFor(i, 1) {
					t.Errorf("address %d is behind %d", i, got)
				}
			}
		})
	}
	wg.Wait()
	seen, learned := map[Key]bool{}, [vport.MaxPorts]int32{}
	for _, e := range f.Dump() {
		if seen[e.Key] {
			t.Errorf("%v is in the table twice", e.Key)
		}
		seen[e.Key] = true
		learned[e.Port]++
	}
	for p := range learned {
		if got := f.learned[p].Load(); got != learned[p] {
			t.Errorf("port %d counts %d, has %d", p, got, learned[p])
		}
	}
}

// TestFDBConcurrentInsertion lets two goroutines insert the same new addresses at once.
func TestFDBConcurrentInsertion(t *testing.T) {
	f := NewFDB(0, 0)
	const addresses = 5000
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range addresses {
				f.Learn(keyOf(uint64(i), 1), w)
				if i%16 == 0 {
					_ = f.AddStatic(keyOf(uint64(i), 2), w)
				}
			}
		})
	}
	wg.Wait()
	seen := map[Key]bool{}
	for _, e := range f.Dump() {
		if seen[e.Key] {
			t.Errorf("%v is in the table twice", e.Key)
		}
		seen[e.Key] = true
	}
	for i := 0; i < addresses; i += 16 {
		if !seen[keyOf(uint64(i), 2)] {
			t.Errorf("the static entry of address %d is gone", i)
		}
	}
}

func TestFDBIsBounded(t *testing.T) {
	f := NewFDB(0, 0)
	for i := range 3 * len(f.slots) {
		f.Learn(keyOf(uint64(i), 0), i%7)
	}
	s := f.Stats()
	if s.Entries > s.Slots || s.Entries < s.Slots*8/10 || s.Evicted+s.Refused+uint64(s.Entries) != uint64(3*s.Slots) {
		t.Errorf("%+v", s)
	}
	// An address that is seen again and again outlives the crowd.
	kept := keyOf(0x0200_0000_0001, 9)
	f.Learn(kept, 3)
	for now := range uint32(20) {
		f.Sweep(now)
		f.Learn(kept, 3)
		for range 1000 {
			f.Learn(keyOf(rand.Uint64()>>16, 1), 1)
		}
	}
	if got := f.Lookup(kept); got != 3 {
		t.Errorf("a busy address was evicted: %d", got)
	}
}

// TestFDBIsShared checks that a port that sends from as many sources as it can does not evict the
// addresses of other ports.
func TestFDBIsShared(t *testing.T) {
	f := NewFDB(0, 0)
	const others = 1000
	address := func(i int) Key { return keyOf(0x0200_0000_0000|uint64(i), 1) }
	for i := range others {
		f.Learn(address(i), 2+i%10)
	}
	flood := func() {
		for range 4 * len(f.slots) {
			f.Learn(keyOf(rand.Uint64()>>16, 1), 1)
		}
	}
	f.Sweep(1)
	flood()
	for i := range others {
		if got := f.Lookup(address(i)); got != 2+i%10 {
			t.Fatalf("address %d is behind port %d", i, got)
		}
	}
	f.Learn(address(others), 12) // there is room for a new port
	flood()
	if got := f.Lookup(address(others)); got != 12 {
		t.Errorf("the new address is behind port %d", got)
	}
	if s := f.Stats(); s.Entries < s.Slots*9/10 {
		t.Errorf("%+v", s)
	}
}

func TestFDBHoldsItsCapacity(t *testing.T) {
	f := NewFDB(0, 0)
	for i := range defaultCapacity {
		f.Learn(keyOf(rand.Uint64()>>16, uint16(i&1)), 1)
	}
	if s := f.Stats(); s.Evicted > defaultCapacity/1000 {
		t.Errorf("%+v: more than one in a thousand was evicted", s)
	}
}

func TestFDBLimitsAPort(t *testing.T) {
	f := NewFDB(0, 0)
	f.LimitPort(1, 10)
	for i := range 100 {
		f.Learn(keyOf(uint64(i), 0), 1)
		f.Learn(keyOf(uint64(i), 1), 2)
	}
	if s := f.Stats(); s.Entries != 110 || s.Refused != 90 {
		t.Errorf("%+v", s)
	}
	f.FlushPort(1, false)
	f.Learn(keyOf(50, 0), 1)
	if got := f.Lookup(keyOf(50, 0)); got != 1 {
		t.Errorf("after the flush: %d", got)
	}
}

// TestFDBLimitsMoves checks that a port's limit holds for addresses that move to it from another
// port, as for new ones, and for all of the port's queues together. An address that may not move
// stays behind its port, and ages there.
func TestFDBLimitsMoves(t *testing.T) {
	f := NewFDB(0, 10*time.Second)
	f.LimitPort(1, 10)
	for i := range 100 {
		f.Learn(keyOf(uint64(i), 0), 2)
	}
	var queues sync.WaitGroup
	for range 4 {
		queues.Go(func() {
			for i := range 100 {
				f.Learn(keyOf(uint64(i), 0), 1)
			}
		})
	}
	queues.Wait()
	at := map[int]int{}
	for _, e := range f.Dump() {
		at[e.Port]++
	}
	if at[1] != 10 || at[2] != 90 || f.Stats().Moves != 10 {
		t.Errorf("by port: %v, %+v", at, f.Stats())
	}
	for now := range uint32(11) {
		f.Sweep(now)
		for i := range 100 {
			f.Learn(keyOf(uint64(i), 0), 1)
		}
	}
	if s := f.Stats(); s.Entries != 10 || s.Aged != 90 {
		t.Errorf("addresses that may not move do not age: %+v", s)
	}
}

func TestFDBFullOfStatics(t *testing.T) {
	f := NewFDB(0, 0)
	k := keyOf(1, 1)
	b, _ := f.place(k)
	bit := Key(0)
	for filled := 0; filled < ways; bit++ { // eight addresses that share its bucket
		other := keyOf(uint64(bit)+2, 5)
		if ob, _ := f.place(other); ob != b {
			continue
		}
		if err := f.AddStatic(other, 4); err != nil {
			t.Fatal(err)
		}
		filled++
	}
	f.Learn(k, 1)
	if got := f.Lookup(k); got != -1 || f.Stats().Refused != 1 {
		t.Errorf("learned at %d, %+v", got, f.Stats())
	}
	if err := f.AddStatic(k, 1); !errors.Is(err, ErrFDBFull) {
		t.Errorf("a static entry too many: %v", err)
	}
}

func BenchmarkFDB(b *testing.B) {
	const n = 10000
	f, keys := NewFDB(0, 0), make([]Key, n)
	for i := range keys {
		keys[i] = keyOf(rand.Uint64()>>16, uint16(i%4))
		f.Learn(keys[i], i%64)
	}
	rand.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		i, sum := 0, 0
		for b.Loop() {
			sum += f.Lookup(keys[i])
			if i++; i == n {
				i = 0
			}
		}
	})
	b.Run("learn", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			f.Learn(keys[i], i&63)
			if i++; i == n {
				i = 0
			}
		}
	})
}

// TestFDBSingle puts an address into its bucket twice, as two goroutines do that insert it at once.
func TestFDBSingle(t *testing.T) {
	for _, c := range []struct {
		first, second uint64
		want          int
	}{{0, 0, 1}, {staticBit, 0, 1}, {0, staticBit, 2}} {
		f := NewFDB(0, 0)
		k := keyOf(5, 5)
		b, rest := f.place(k)
		f.swap(b*ways+3, 0, wordOf(rest, 1)|c.first)
		f.swap(b*ways+6, 0, wordOf(rest, 2)|c.second)
		f.single(b, rest)
		if got := f.Lookup(k); got != c.want || f.Stats().Entries != 1 {
			t.Errorf("%+v: behind port %d, %+v", c, got, f.Stats())
		}
	}
}
