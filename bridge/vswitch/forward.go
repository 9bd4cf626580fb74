package vswitch

import (
	"time"

	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/offload"
)

// A receiver is the goroutine of one queue of a port. It receives a batch of frames, decides where
// each goes, and sends it there. It shares none of its buffers with other goroutines.
type receiver struct {
	sw    *Switch
	port  *Port
	queue queue
	n     int         // number of the queue
	guest *vhostQueue // the queue, if batches come from a guest's memory

	polling *polling // made when a poller first looks for its frames

	// The current batch.
	ports  *table
	clock  clock
	frames [batchSize]frame
	to     [batchSize]*Port // destination of each frame that is not sent yet

	// What the batch has asked the FDB last: most of its frames belong to one flow or two.
	learned   Key   // 0 for none
	sought    Key   // 0 for none
	reachable *Port // its frames may leave by that port

	out    *sender
	heads  [batchSize][headMax]byte // heads of frames whose tag or vnet header changes
	fin    offload.Finisher
	recut  offload.Limits // a target's, for frames of other hosts, whose segments are of a guessed size
	copied []byte         // buffer for a frame that is both retagged and finished; made for the first one

	shortcuts shortcuts

	refused    int         // refused frames in the batch
	throttling *time.Timer // made by the first call of pause
}

func newReceiver(sw *Switch, p *Port, n int) *receiver {
	return &receiver{sw: sw, clock: clock{sw: sw}, port: p, queue: p.wire.queues[n], n: n, out: newSender()}
}

// inPlace prepares for batches that are in place in a guest's memory.
func (r *receiver) inPlace() {
	if q, ok := r.queue.(*vhostQueue); ok {
		r.guest, r.out.guests.From = q, q.pair
	}
}

func (r *receiver) run() {
	defer r.out.close()
	r.inPlace()
	for {
		n, err := r.queue.receive(r.frames[:])
		if err != nil {
			r.port.endWith(err)
			return
		}
		r.handle(n)
		r.rest(n)
		r.sw.pollers.poll(r)
	}
}

// handle sends a batch of n frames where they go, and ends it.
func (r *receiver) handle(n int) {
	r.port.path.Load().input(r, r.frames[:n])
	if r.shortcuts.n > 0 {
		r.takeShortcuts()
	}
	r.ports, r.reachable = nil, nil // a waiting receiver must not keep a removed port and its buffers alive
	if r.guest != nil {
		r.guest.pair.Done(&r.out.guests)
	}
}

// rest waits after a batch of n frames if the port is over one of its limits.
func (r *receiver) rest(n int) {
	if r.refused > 0 {
		r.throttle(r.refused)
		r.refused = 0
	}
	r.slow(r.port.set.Load(), r.frames[:n])
}

// input handles a batch. It checks each frame, learns its source, and sends it, in the order of
// arrival.
func (r *receiver) input(frames []frame) {
	r.ports, r.clock.at = r.sw.table.Load(), 0
	r.learned, r.sought = 0, 0
	var count, bytes uint64
	for i := range frames {
		f := &frames[i]
		why := f.lost
		if why == Delivered {
			count++
			bytes += uint64(f.size())
			why = r.accept(f)
		}
		if why == Delivered {
			why = r.forward(frames, i)
		}
		if why != Delivered {
			r.port.drop(why)
			f.lost = why
			if why.refused() {
				r.refused++
			}
		}
	}
	r.flush(frames)
	r.port.rx[r.n].add(count, bytes)
}

// accept learns a frame's source and returns Delivered, or returns why the port does not accept the
// frame. Like the kernel's bridge, it learns from link-local frames other than pause frames
// (__br_handle_local_finish in net/bridge/br_input.c).
func (r *receiver) accept(f *frame) Reason {
	why := f.parse()
	if why != Delivered && f.more > 0 { // the headers may be longer than data
		if !r.whole(f) {
			return Unreadable
		}
		why = f.parse()
	}
	if why != Delivered {
		return why
	}
	p := r.port
	set := p.set.Load()
	switch {
	case set.cfg.Down:
		return Down
	case r.stopped(p):
		return Looped
	case f.src&groupBit != 0 || f.src == 0:
		return BadSource
	case !set.admits(f.src):
		return Spoofed
	case set.security != nil:
		if f.more > 0 && !portsec.Suffices(f.ether()) && !r.whole(f) {
			return Unreadable
		}
		if why := set.security.Verdict(f.ether()); why != portsec.Pass {
			return securityBase + Reason(why)
		}
	}
	switch {
	case f.dst == pauseFrame:
		return LinkLocal
	case !r.ports.classify(&set.vlans, f):
		return VLAN
	}
	if !set.cfg.NoLearning && !p.down.Load() {
		if k := keyOf(f.src, f.vid); k != r.learned {
			r.sw.fdb.Learn(k, p.index)
			r.learned = k
		}
	}
	if isLinkLocal(f.dst) && !set.cfg.Forward.Has(byte(f.dst&0xf)) {
		return LinkLocal
	}
	return Delivered
}

// forward decides where frame i goes. A frame for one port is sent by flush, together with others
// of the batch. A flooded frame is sent at once, after the frames that came before it.
func (r *receiver) forward(frames []frame, i int) Reason {
	f, set := &frames[i], r.port.set.Load()
	switch {
	case f.dst&groupBit != 0 && r.looped(f):
		return Looped
	case f.dst == broadcast:
		if !set.broadcasts.take(r.clock.now(), f.segments()) {
			return Broadcasts
		}
	case f.dst&groupBit != 0:
		if !set.multicasts.take(r.clock.now(), f.segments()) {
			return Multicasts
		}
	default:
		k := keyOf(f.dst, f.vid)
		if k == r.sought {
			r.target(i, f, r.reachable)
			return Delivered
		}
		index := r.sw.fdb.Lookup(k)
		if by := r.ports.by; index >= 0 && index < len(by) && by[index] != nil {
			to := by[index]
			why := r.between(to, f)
			if why == Delivered {
				r.target(i, f, to)
				r.sought, r.reachable = k, to
			}
			if why != VLAN { // else it was learned while the port left the VLAN
				return why
			}
		}
		if r.looped(f) {
			return Looped
		}
		if !set.unknowns.take(r.clock.now(), f.segments()) {
			return Unknowns
		}
	}
	r.flush(frames[:i])
	return r.flood(f)
}

// target has flush send frame i to a port. Further frames like it may take the fast path.
func (r *receiver) target(i int, f *frame, to *Port) {
	r.to[i] = to
	if r.port.fast != nil && to.fast != nil {
		r.shorten(f, to)
	}
}

// between returns Delivered if a frame of this port may leave by to, or why it may not. On a switch
// that does not filter VLANs, has is always true (see vlans).
func (r *receiver) between(to *Port, f *frame) Reason {
	set := to.set.Load()
	switch {
	case to == r.port && !set.cfg.Hairpin:
		return SamePort
	case set.cfg.Isolated && r.port.set.Load().cfg.Isolated:
		return Isolated
	case set.cfg.Down:
		return Down
	case r.stopped(to):
		return Looped
	case !set.vlans.has(f.vid):
		return VLAN
	}
	return Delivered
}

// flood sends a frame to all ports that may send it. It does not report why others may not.
func (r *receiver) flood(f *frame) Reason {
	unknown, sent := f.dst&groupBit == 0, false
	for _, to := range r.ports.ports {
		if r.between(to, f) != Delivered || unknown && to.set.Load().cfg.NoFlood {
			continue
		}
		sent = true
		r.add(to, f)
		r.send(to)
	}
	if !sent {
		return NoPort
	}
	return Delivered
}

// flush sends the waiting frames, one target after the other.
func (r *receiver) flush(frames []frame) {
	for i := range frames {
		to := r.to[i]
		if to == nil {
			continue
		}
		for j := i; j < len(frames); j++ {
			if r.to[j] == to {
				r.to[j] = nil
				r.add(to, &frames[j])
			}
		}
		r.send(to)
	}
}

// add appends a frame to the list for a target, in the form that the target takes. A frame that is
// finished in software is sent at once, after the list.
func (r *receiver) add(to *Port, f *frame) {
	if !to.set.Load().down.take(&r.clock, f.data, f.more) {
		to.refuse(r, f, Rated)
		return
	}
	if !to.wire.pieces && !r.whole(f) {
		to.refuse(r, f, Unreadable)
		return
	}
	limits := to.limits.Load()
	if r.port.wire.overlay != nil {
		r.recut = *limits
		r.recut.Recut, limits = true, &r.recut
	}
	if r.port.wire.verified || to.wire.verified {
		r.hasten(to, f, limits)
	}
	tci, tagged := r.ports.leaving(to, f)
	retag := tagged != f.tagged || tci != f.tci
	// The answer is the same for the frame as it leaves: a frame may be one tag longer than the
	// MTU allows, and its outermost tag does not count (Limits.admits in package offload).
	fits := f.vnet.Plain() && f.size() <= limits.MTU+etherLen || offload.FitsStart(f.vnet, f.ether(), f.more, limits)
	switch {
	case !fits && !r.whole(f):
		to.refuse(r, f, Unreadable)
		return
	case fits && !retag && limits.VnetHdr <= vnetLen:
		r.out.addWhole(f.data[vnetLen-limits.VnetHdr:], f.rest)
		return
	case !fits && !retag:
		r.finish(to, limits, f.vnet, f.data)
		return
	}
	head, shift := r.heads[r.out.n][:], 0
	out := offload.Frame{Head: head[:offload.MaxVnetHdr], Payload: f.ether(), Rest: f.rest}
	if retag {
		out, shift = f.retag(head, tci, tagged)
	}
	if fits {
		out.Head = out.Head[offload.MaxVnetHdr-limits.VnetHdr:]
		offload.DescribeStart(f.vnet, f.ether(), f.more, out.Head[:limits.VnetHdr], shift)
		r.out.add(out)
		return
	}
	h := f.vnet.Shifted(shift)
	out.Head = out.Head[offload.MaxVnetHdr-vnetLen:]
	h.Put(out.Head)
	r.copied = append(append(r.copied[:0], out.Head...), out.Payload...)
	r.finish(to, limits, h, r.copied)
}

// whole makes a frame's data the whole frame, as what reads more than headers needs it. It reports
// whether it could: if the memory of the guest that has sent it is gone, the guest's session ends.
func (r *receiver) whole(f *frame) bool { return f.more == 0 || r.guest.whole(f) }

// hasten has frames from and to a port of verified frames be few and long: see Wire.Verified.
func (r *receiver) hasten(to *Port, f *frame, limits *offload.Limits) {
	if to.wire.verified {
		offload.RaiseMSS(f.vnet, f.ether(), f.more, r.port.limits.Load().MTU)
		return
	}
	if f.vnet.Flags != 0 || f.vnet.GSOType != offload.GSONone || !limits.CSum && len(f.ether()) <= limits.MTU+etherLen {
		return
	}
	if h, ok := offload.Vouch(f.ether(), limits.MTU); ok {
		f.vnet = h
		h.Put(f.data)
	}
}

// finish converts a whole frame into frames that the target takes, and sends them.
func (r *receiver) finish(to *Port, limits *offload.Limits, h offload.Header, data []byte) {
	if why := r.fin.Start(h, data[vnetLen:], *limits); why != offload.OK {
		to.refuse(r, &frame{data: data}, fromOffload(why))
		return
	}
	r.send(to)
	for frames := r.fin.Next(); len(frames) > 0; frames = r.fin.Next() {
		for _, f := range frames {
			r.out.add(f)
		}
		r.send(to)
	}
}

// send sends the list to a target. Each queue always writes to the same queue of the target, so
// that a flow is not reordered.
func (r *receiver) send(to *Port) {
	if r.out.n == 0 {
		return
	}
	n := r.n % len(to.wire.queues)
	r.out.begin(to.wire.limits.VnetHdr)
	to.path.Load().queues[n].send(r.out)
	r.out.n = 0
	if r.out.frames > 0 {
		to.tx[n].add(r.out.frames, r.out.bytes)
	}
	if r.out.failed {
		to.countDrops(r.out)
	}
}

// countDrops counts the frames that a send has dropped.
func (p *Port) countDrops(s *sender) {
	for why, n := range s.drops {
		if n > 0 {
			p.drops[why].Add(uint64(n))
		}
	}
	if s.drops[Down] > 0 {
		p.forget() // the device is down, whether the port follows it or not
	}
	if s.gone != 0 {
		p.endWith(s.gone)
	}
}
