package vswitch

import (
	"time"

	"vmnet/bridge/vswitch/offload"
)

// A receiver is the goroutine of one queue of a port: it takes a batch of frames, decides where each goes, and
// writes them there. All that it needs for that is its own.
type receiver struct {
	sw    *Switch
	port  *Port
	queue queue
	n     int // number of the queue

	// Of the batch under way.
	ports  *table
	now    int64 // nanoseconds since the switch's start
	frames [batchSize]frame
	to     [batchSize]*Port // where each frame goes that was not sent yet

	out    *sender
	heads  [batchSize][headMax]byte // of frames whose tag changes, or whose vnet header is longer
	fin    offload.Finisher
	copied []byte // room for a frame that is to be both retagged and finished; made by the first

	refused int         // frames of the batch
	resting *time.Timer // made by the first rest
}

func newReceiver(sw *Switch, p *Port, n int) *receiver {
	return &receiver{sw: sw, port: p, queue: p.wire.queues[n], n: n, out: newSender()}
}

func (r *receiver) run() {
	defer r.out.close()
	for {
		n, err := r.queue.receive(r.frames[:])
		if err != nil {
			r.port.endWith(err)
			return
		}
		r.port.way.Load().input(r, r.frames[:n])
		r.ports = nil // whoever waits for frames keeps no port that is removed meanwhile, with its buffers
		if r.refused > 0 {
			r.rest(r.refused)
			r.refused = 0
		}
	}
}

// input takes a batch: each frame is checked, learned from, and sent, in the order in which they came.
func (r *receiver) input(frames []frame) {
	r.ports, r.now = r.sw.table.Load(), r.sw.now()
	var count, bytes uint64
	for i := range frames {
		f := &frames[i]
		why := f.lost
		if why == Delivered {
			count++
			bytes += uint64(max(0, len(f.data)-vnetLen))
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

// accept tells whether the port takes a frame, and learns its source. As the kernel's bridge does,
// it learns from frames that are for the next bridge only, but for those of pause
// (__br_handle_local_finish in net/bridge/br_input.c).
func (r *receiver) accept(f *frame) Reason {
	if why := f.parse(); why != Delivered {
		return why
	}
	p := r.port
	switch {
	case p.stop.stopped(r.now):
		return Looped
	case f.src&groupBit != 0 || f.src == 0:
		return Source
	case !p.admits(f.src):
		return Spoofed
	case f.dst == pauseFrame:
		return LinkLocal
	case !r.ports.classify(p, f):
		return VLAN
	}
	if !p.cfg.NoLearning && !p.down.Load() {
		r.sw.fdb.Learn(keyOf(f.src, f.vid), p.index)
	}
	if isLinkLocal(f.dst) && !p.cfg.Forward.Has(byte(f.dst&0xf)) {
		return LinkLocal
	}
	return Delivered
}

// forward finds out where frame i goes. To one port it goes with others of the batch, in flush; what is flooded goes
// at once, behind what came earlier.
func (r *receiver) forward(frames []frame, i int) Reason {
	f, p := &frames[i], r.port
	switch {
	case f.dst&groupBit != 0 && r.looped(f):
		return Looped
	case f.dst == broadcast:
		if !p.broadcasts.take(r.now, f.segments()) {
			return Broadcasts
		}
	case f.dst&groupBit != 0:
		if !p.multicasts.take(r.now, f.segments()) {
			return Multicasts
		}
	default:
		index := r.sw.fdb.Lookup(keyOf(f.dst, f.vid))
		if by := r.ports.by; index >= 0 && index < len(by) && by[index] != nil {
			to := by[index]
			why := r.between(to, f)
			if why == Delivered {
				r.to[i] = to
			}
			return why
		}
		if r.looped(f) {
			return Looped
		}
		if !p.unknowns.take(r.now, f.segments()) {
			return Unknowns
		}
	}
	r.flush(frames[:i])
	return r.flood(f)
}

// between tells whether a frame of this port may leave by another one.
func (r *receiver) between(to *Port, f *frame) Reason {
	switch {
	case to == r.port && !to.cfg.Hairpin:
		return Back
	case r.port.cfg.Isolated && to.cfg.Isolated:
		return Isolated
	case to.stop.stopped(r.now):
		return Looped
	case !to.vlans.has(f.vid):
		return VLAN
	}
	return Delivered
}

// flood sends a frame to all ports that may have it.
func (r *receiver) flood(f *frame) Reason {
	unknown, sent := f.dst&groupBit == 0, false
	for _, to := range r.ports.ports {
		if r.between(to, f) != Delivered || unknown && to.cfg.NoFlood {
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

// flush sends what waits, target by target.
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

// add puts a frame into the list for a target, in the form that the target takes. A frame that is finished in
// software is sent at once, behind the list.
func (r *receiver) add(to *Port, f *frame) {
	limits := to.limits.Load()
	tci, tagged := r.ports.leaving(to, f)
	retag := tagged != f.tagged || tci != f.tci
	// What the limits are about is the same with the tag and without it.
	fits := offload.Fits(f.vnet, f.ether(), *limits)
	switch {
	case fits && !retag && limits.VnetHdr <= vnetLen:
		r.out.add(offload.Frame{Head: f.data[vnetLen-limits.VnetHdr:]})
		return
	case !fits && !retag:
		r.finish(to, f.vnet, f.data)
		return
	}
	head, shift := r.heads[r.out.n][:], 0
	out := offload.Frame{Head: head[:offload.MaxVnetHdr], Payload: f.ether()}
	if retag {
		out, shift = f.retag(head, tci, tagged)
	}
	if fits {
		out.Head = out.Head[offload.MaxVnetHdr-limits.VnetHdr:]
		offload.Describe(f.vnet, f.ether(), out.Head[:limits.VnetHdr], shift)
		r.out.add(out)
		return
	}
	h := f.vnet.Shifted(shift)
	out.Head = out.Head[offload.MaxVnetHdr-vnetLen:]
	h.Put(out.Head)
	r.copied = append(append(r.copied[:0], out.Head...), out.Payload...)
	r.finish(to, h, r.copied)
}

// finish makes of a frame what the target takes, and sends it.
func (r *receiver) finish(to *Port, h offload.Header, data []byte) {
	if why := r.fin.Start(h, data[vnetLen:], *to.limits.Load()); why != offload.OK {
		to.refuse(r, data, fromOffload(why))
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

// send gives the list to a target. Each queue writes to one and the same of the target's, so that no flow is
// overtaken by itself.
func (r *receiver) send(to *Port) {
	if r.out.n == 0 {
		return
	}
	n := r.n % len(to.wire.queues)
	r.out.begin(to.wire.limits.VnetHdr)
	to.way.Load().queues[n].send(r.out)
	r.out.n = 0
	if r.out.frames > 0 {
		to.tx[n].add(r.out.frames, r.out.bytes)
	}
	if r.out.dropped {
		to.dropped(r.out)
	}
}

// dropped counts what a send has dropped.
func (p *Port) dropped(s *sender) {
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
