package vswitch

import (
	"maps"
	"os"
	"slices"

	"vmnet/bridge/vswitch/vport"
)

// numberOf returns the number by which a port's fast path knows another port, or -1 if it does not
// yet, or has no number left. It is called by a receiver of the port.
func (f *fastPaths) numberOf(p, to *Port) int {
	free := -1
	for i := range p.fast.ports {
		switch c := &p.fast.ports[i]; {
		case c.to == to && c.ready:
			return i
		case c.to == to:
			return -1
		case c.to == nil && !c.busy && free < 0:
			free = i
		}
	}
	if free < 0 {
		return -1
	}
	frames, bytes, err := p.fast.table.Count(free)
	if err != nil {
		return -1
	}
	place, err := to.fast.table.Place()
	if err != nil {
		return -1
	}
	p.fast.ports[free] = fastTarget{to: to, busy: true, frames: frames, bytes: bytes}
	p.receivers.Go(func() {
		f.introduce(p, to, free, place)
		_ = place.Close()
	})
	return -1
}

// introduce makes a port known to another one's fast path by that number. It takes the time of
// which a receiver has none, and no other port gets the number meanwhile, even if this one leaves.
// If it fails, the number stays taken.
func (f *fastPaths) introduce(p, to *Port, number int, place *os.File) {
	err := p.fast.table.SetTarget(number, place)
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &p.fast.ports[number]
	c.busy, c.ready = false, c.to == to && err == nil
}

// collect adds what the kernel has forwarded from and to a port to the ports' counters.
func (f *fastPaths) collect(p *Port) {
	for _, from := range f.ports {
		for i := range from.fast.ports {
			if c := &from.fast.ports[i]; c.to != nil && (from == p || c.to == p) {
				c.read(from, i)
			}
		}
	}
}

func (c *fastTarget) read(from *Port, i int) {
	frames, bytes, err := from.fast.table.Count(i)
	if err != nil {
		return
	}
	newFrames, newBytes := frames-c.frames, bytes-c.bytes
	c.frames, c.bytes = frames, bytes
	from.rx[0].add(newFrames, newBytes)
	c.to.tx[0].add(newFrames, newBytes)
	from.fast.frames.Add(newFrames)
}

// tick keeps addresses in the FDB whose frames the kernel has forwarded, and removes from the fast
// paths those without frames. now is in seconds. Call it once a second, before FDB.Sweep. It makes
// up to two system calls for each address, so it gives up the lock after some.
func (f *fastPaths) tick(now uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	for _, p := range slices.Clone(f.ports) {
		sources, targets := slices.Collect(maps.Keys(p.fast.sources)), slices.Collect(maps.Keys(p.fast.targets))
		for i, k := range sources {
			f.lookAtSource(p, k, now)
			f.letIn(i)
		}
		for i, k := range targets {
			f.lookAtTarget(p, k)
			f.letIn(i)
		}
	}
}

// letIn gives up the lock for a moment after each 32 addresses.
func (f *fastPaths) letIn(i int) {
	if i%32 == 31 {
		f.mu.Unlock()
		f.mu.Lock()
	}
}

// lookAtSource and lookAtTarget do nothing if the address has left meanwhile.
func (f *fastPaths) lookAtSource(p *Port, k Key, now uint32) {
	e := p.fast.sources[k]
	if e == nil {
		return
	}
	seen, err := p.fast.table.SourceSeen(k.bytes())
	if seen {
		f.fdb.Refresh(k, p.index, now)
	}
	if e.age(seen, err) {
		f.removeSource(p, k, true)
	}
}

func (f *fastPaths) lookAtTarget(p *Port, k Key) {
	e := p.fast.targets[k]
	if e == nil {
		return
	}
	if seen, err := p.fast.table.TargetSeen(k.bytes()); e.age(seen, err) {
		f.removeTarget(p, k, true)
	}
}

// age counts a tick, and reports whether the entry is to be removed.
func (e *fastEntry) age(seen bool, err error) bool {
	if seen {
		e.idle = 0
	}
	e.idle++
	return err != nil || e.idle > fastIdle
}

// stats returns the state of a port's fast path, or nil for a kind of port that never has one. It
// brings the port's counters up to date.
func (f *fastPaths) stats(p *Port) *vport.FastPath {
	switch {
	case p.wire.kind != "packet":
		return nil
	case f.off:
		return &vport.FastPath{Why: "the switch runs without"}
	case p.fast == nil:
		return &vport.FastPath{Why: p.wire.noFast}
	}
	f.mu.Lock()
	if p.fast.joined {
		f.collect(p)
	}
	f.mu.Unlock()
	why := p.slow()
	return &vport.FastPath{On: why == "", Why: why, Frames: p.fast.frames.Load()}
}
