package vswitch

import (
	"time"

	"vmnet/bridge/vswitch/vport"
)

// State returns the port's current state. A port that does not follow its device is up until it
// ends.
func (p *Port) State() vport.State {
	switch {
	case p.Err() != nil:
		return vport.StateEnded
	case p.stop.stopped(p.sw.now()):
		return vport.StateStopped
	case p.isDown():
		return vport.StateDown
	}
	return vport.StateUp
}

// Stats returns a snapshot of the counters.
func (p *Port) Stats() vport.Stats {
	fast := p.sw.fast.stats(p) // first, since it reads counters
	s := vport.Stats{
		Name: p.name, Kind: p.wire.kind, MTU: p.limits.Load().MTU, State: p.State(),
		Loops: p.stop.loops.Load(), Drops: map[string]uint64{},
		FastPath: fast,
	}
	switch s.State {
	case vport.StateEnded:
		s.Ended = p.Err().Error()
	case vport.StateStopped:
		s.Stopped = int((p.stop.left(p.sw.now()) + time.Second - 1) / time.Second)
	}
	for i, q := range p.wire.queues {
		s.Queues = append(s.Queues, vport.QueueStats{
			RxFrames: p.rx[i].frames.Load(), RxBytes: p.rx[i].bytes.Load(),
			TxFrames: p.tx[i].frames.Load(), TxBytes: p.tx[i].bytes.Load(),
		})
		if k, ok := q.(interface{ kernelDrops() (Reason, uint64) }); ok {
			why, n := k.kernelDrops()
			p.drops[why].Add(n)
		}
	}
	for why := range p.drops {
		if n := p.drops[why].Load(); n > 0 {
			s.Drops[Reason(why).String()] = n
		}
	}
	return s
}

// Dropped returns the number of frames that the port has dropped for a reason.
func (p *Port) Dropped(why Reason) uint64 { return p.drops[why].Load() }
