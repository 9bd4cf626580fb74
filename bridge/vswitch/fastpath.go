package vswitch

import (
	"slices"
	"sync"
	"sync/atomic"

	"vmnet/internal/kernel/fastpath"
)

// The kernel forwards frames between packet ports itself if both of their addresses are in the fast
// path of the port on which they arrive (package fastpath). A receiver adds the addresses of a
// frame that it has forwarded to another such port; what it may not forward without looking, it
// never adds. All else is as without it, since other frames come to the switch: those for unknown,
// group and link-local addresses, from addresses that are not known to be behind the port, and
// those that may not fit the target.
//
// The addresses of both ends are the FDB's. When an address leaves the FDB, or moves to another
// port, it leaves all fast paths, and when a port changes, so do all addresses of it and behind it.
// That is done before the change is answered. Since the kernel may forward a frame while an entry
// is removed, the change comes first and the removal after it, and who adds an entry looks at the
// FDB again afterwards.
//
// Receivers of all ports share the lock. One never waits for it to add an entry, and takes it for
// an address that leaves the FDB only if a fast path may have that.
type fastPaths struct {
	off bool // Config.NoFastPath
	fdb *FDB

	mu      sync.Mutex
	ports   []*Port
	stale   bool                        // a port was handed over: the kernel has addresses that are not in holders
	holders map[Key][]*Port             // the ports whose fast paths have an address
	entries atomic.Int64                // in holders
	held    [1 << heldBits]atomic.Int32 // how many of holders there are, by hash
}

// A fastPort is the fast path of one packet port. What follows the table is guarded by
// fastPaths.mu.
type fastPort struct {
	table  *fastpath.Table
	netns  uint64 // where the device is
	joined bool   // it is in fastPaths.ports

	sources, targets map[Key]*fastEntry
	ports            [fastpath.MaxTargets]fastTarget
	frames           atomic.Uint64 // that the kernel has forwarded
	size             atomic.Int32  // of sources and targets
}

type fastEntry struct {
	to   *Port // of a target
	idle int   // ticks since it was seen
}

// A fastTarget is a port to which frames may be forwarded.
type fastTarget struct {
	to            *Port  // nil if there is none
	ready         bool   // the kernel knows it
	busy          bool   // introduce is under way, so the number is not free
	frames, bytes uint64 // when they were last read
}

// fastIdle is after how many seconds without a frame an address leaves the fast path. It stays in
// the FDB as long as the ageing says.
const fastIdle = 30

// heldBits is the number of bits of the hash by which addresses are counted.
const heldBits = 10

func (f *fastPaths) begin(fdb *FDB, off bool) {
	f.fdb, f.off, f.holders = fdb, off, map[Key][]*Port{}
	fastpath.Prepare()
	if !off {
		fdb.left = f.forget
	}
}

// join begins the fast path of a port, if it has one.
func (f *fastPaths) join(p *Port) {
	q := p.wire.fast
	if q == nil || f.off {
		return
	}
	p.wire.fast = nil // the port closes it
	f.mu.Lock()
	defer f.mu.Unlock()
	p.fast = q
	q.sources, q.targets = map[Key]*fastEntry{}, map[Key]*fastEntry{}
	f.settle()
	f.ports, q.joined = append(f.ports, p), true
}

// leave ends the fast path of a port that is removed. If it is handed over, the kernel forwards its
// frames until the next switch opens the table.
func (f *fastPaths) leave(p *Port, handedOver bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.fast != nil && p.fast.joined {
		f.unjoin(p, handedOver)
	}
}

func (f *fastPaths) unjoin(p *Port, handedOver bool) {
	f.removeAll(p, !handedOver)
	f.collect(p) // the last frames as well
	f.stale = f.stale || handedOver
	for _, other := range f.ports {
		for i := range other.fast.ports {
			if c := &other.fast.ports[i]; c.to == p {
				*c = fastTarget{busy: c.busy}
			}
		}
	}
	i := slices.Index(f.ports, p)
	f.ports, p.fast.joined = slices.Delete(f.ports, i, i+1), false
}

// settle removes what is left of ports that were handed over, if others were not.
func (f *fastPaths) settle() {
	if !f.stale {
		return
	}
	f.stale = false
	for _, p := range f.ports {
		f.removeAll(p, false)
		p.fast.check(p, p.fast.table.Clear())
	}
}

// revoke removes all addresses of a port and behind it from the fast paths.
func (f *fastPaths) revoke(p *Port) {
	if p.fast == nil { // else an addition may be under way that has seen the port as it was
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removeAll(p, true)
}

// revokeAll removes all addresses.
func (f *fastPaths) revokeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.ports {
		f.removeAll(p, true)
	}
}

// removeAll removes all addresses of a port and behind it, and from the kernel only with tables.
func (f *fastPaths) removeAll(p *Port, tables bool) {
	for _, other := range f.ports {
		for k, e := range other.fast.targets {
			if e.to == p || other == p {
				f.removeTarget(other, k, tables)
			}
		}
	}
	for k := range p.fast.sources {
		f.removeSource(p, k, tables)
	}
}

// forget removes an address that is not behind a port any more. The FDB calls it, with locks held.
func (f *fastPaths) forget(k Key, port int) {
	if f.held[k.hash(heldBits)].Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range slices.Clone(f.holders[k]) {
		if e := p.fast.targets[k]; e != nil && e.to.index == port {
			f.removeTarget(p, k, true)
		}
		if p.fast.sources[k] != nil && p.index == port {
			f.removeSource(p, k, true)
		}
	}
}

func (f *fastPaths) removeTarget(p *Port, k Key, table bool) {
	if table {
		p.fast.check(p, p.fast.table.RemoveTarget(k.bytes()))
	}
	delete(p.fast.targets, k)
	f.release(p, k)
}

func (f *fastPaths) removeSource(p *Port, k Key, table bool) {
	if table {
		p.fast.check(p, p.fast.table.RemoveSource(k.bytes()))
	}
	delete(p.fast.sources, k)
	f.release(p, k)
}

// check tells of a fast path that cannot be changed: frames may go where an address was before.
func (q *fastPort) check(p *Port, err error) {
	if err != nil {
		p.sw.notice("port %s: cannot change its fast path, so frames may go astray (remove the port): %v", p.name, err)
	}
}

// release notes that a port's fast path does not have an address any more.
func (f *fastPaths) release(p *Port, k Key) {
	p.fast.count()
	if p.fast.sources[k] != nil || p.fast.targets[k] != nil {
		return
	}
	left := slices.DeleteFunc(f.holders[k], func(o *Port) bool { return o == p })
	if f.holders[k] = left; len(left) == 0 {
		delete(f.holders, k)
		f.held[k.hash(heldBits)].Add(-1)
	}
	f.entries.Store(int64(len(f.holders)))
}

func (f *fastPaths) hold(p *Port, k Key) {
	p.fast.count()
	if len(f.holders[k]) == 0 {
		f.held[k.hash(heldBits)].Add(1)
	}
	if !slices.Contains(f.holders[k], p) {
		f.holders[k] = append(f.holders[k], p)
	}
	f.entries.Store(int64(len(f.holders)))
}

func (q *fastPort) count() { q.size.Store(int32(len(q.sources) + len(q.targets))) }

// add has the kernel forward the frames of a port that have these addresses, of which dst is behind
// the port to. It does nothing if that may not be, there is no room, or others have the lock.
func (f *fastPaths) add(p, to *Port, src, dst Key) {
	if p.fast.size.Load()+2 > fastpath.MaxAddresses || !allows(p, to) || !f.mu.TryLock() {
		return
	}
	defer f.mu.Unlock()
	// The ports may have changed meanwhile.
	if !p.fast.joined || !to.fast.joined || !allows(p, to) || p.fast.sources[src] != nil && p.fast.targets[dst] != nil {
		return
	}
	if f.fdb.Lookup(src) != p.index || f.fdb.Lookup(dst) != to.index {
		return
	}
	number := f.numberOf(p, to)
	if number < 0 {
		return
	}
	err := p.fast.table.PutTarget(dst.bytes(), fastpath.Target{
		Number: number, MTU: to.fastMTU(), Untagged: p.sw.table.Load().filters,
	})
	if err != nil {
		return
	}
	p.fast.targets[dst] = &fastEntry{to: to}
	f.hold(p, dst)
	if err := p.fast.table.PutSource(src.bytes()); err == nil {
		p.fast.sources[src] = &fastEntry{}
		f.hold(p, src)
	}
	// They may have left the FDB meanwhile.
	if f.fdb.Lookup(dst) != to.index {
		f.removeTarget(p, dst, true)
	}
	if p.fast.sources[src] != nil && f.fdb.Lookup(src) != p.index {
		f.removeSource(p, src, true)
	}
}

// fastMTU returns the MTU of frames that the kernel may send by the port without looking further.
func (p *Port) fastMTU() int {
	mtu := p.limits.Load().MTU
	if link := p.link.Load(); link != nil {
		mtu = min(mtu, link.MTU)
	}
	return mtu
}

// allows reports whether the kernel may forward frames from one port to another one as they are.
func allows(p, to *Port) bool {
	if p == to || p.fast.netns != to.fast.netns {
		return false
	}
	from, at := p.set.Load(), to.set.Load()
	return p.slow() == "" && to.slow() == "" && !(from.cfg.Isolated && at.cfg.Isolated) &&
		from.vlans.pvid == at.vlans.pvid
}

// slow returns why the switch handles all frames of a port itself, or "". It is for a port that has
// a fast path.
func (p *Port) slow() string {
	set := p.set.Load()
	switch {
	case p.Err() != nil || p.isDown():
		return "the port is down"
	case p.stop.stopped(p.sw.now()):
		return "the port is stopped for a loop"
	case set.security != nil:
		return "it has port security"
	case !set.up.limit.IsZero() || !set.down.limit.IsZero():
		return "it has a rate"
	case len(set.cfg.Trunk) > 0:
		return "it is a trunk"
	case p.wire.verified:
		return "its frames are joined"
	case len(p.path.Load().views) > 0:
		return "a capture runs"
	}
	return ""
}

// bytes returns the key's address.
func (k Key) bytes() (mac [6]byte) {
	putMAC(mac[:], k.mac())
	return mac
}

// hash returns a number of that many bits.
func (k Key) hash(bits uint) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 >> (64 - bits) }

// close ends the kernel's part.
func (q *fastPort) close() error {
	if q == nil {
		return nil
	}
	return q.table.Close()
}
