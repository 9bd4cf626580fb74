package vswitch

import "time"

// A PortState says what passes a port.
type PortState string

// The states of a port.
const (
	StateUp      PortState = "up"
	StateDown    PortState = "down"    // its device is, or has no carrier
	StateStopped PortState = "stopped" // for a loop
	StateEnded   PortState = "ended"   // its other end has gone
)

// State is the port's state now. A port whose device nobody follows is up until it has ended.
func (p *Port) State() PortState {
	switch {
	case p.Err() != nil:
		return StateEnded
	case p.stop.stopped(p.sw.now()):
		return StateStopped
	case p.down.Load():
		return StateDown
	}
	return StateUp
}

// PortStats are a port's counters since it was added.
type PortStats struct {
	Name    string       `json:"name"`
	Kind    string       `json:"kind"` // of its wire: "tap", "packet", "socket"
	MTU     int          `json:"mtu"`  // bytes, of frames that leave by it
	State   PortState    `json:"state"`
	Ended   string       `json:"ended,omitempty"`
	Loops   uint64       `json:"loops,omitempty"`   // how many times it was stopped
	Stopped int          `json:"stopped,omitempty"` // seconds until it is not any more
	Queues  []QueueStats `json:"queues"`

	// Drops are the reasons for which there were any: of frames that came in by the port and were not
	// taken, and of frames that should have left by it.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// QueueStats are those of one queue. Rx came in by it, Tx left by it. A super-frame counts as one. Bytes are of Ethernet
// frames, without vnet headers.
type QueueStats struct {
	RxFrames uint64 `json:"rx_frames"`
	RxBytes  uint64 `json:"rx_bytes"`
	TxFrames uint64 `json:"tx_frames"`
	TxBytes  uint64 `json:"tx_bytes"`
}

// Total adds up the queues.
func (s PortStats) Total() (total QueueStats) {
	for _, q := range s.Queues {
		total.RxFrames += q.RxFrames
		total.RxBytes += q.RxBytes
		total.TxFrames += q.TxFrames
		total.TxBytes += q.TxBytes
	}
	return total
}

// Stats is a snapshot of the counters.
func (p *Port) Stats() PortStats {
	s := PortStats{
		Name: p.name, Kind: p.wire.kind, MTU: p.limits.Load().MTU, State: p.State(),
		Loops: p.stop.loops.Load(), Drops: map[string]uint64{},
	}
	switch s.State {
	case StateEnded:
		s.Ended = p.Err().Error()
	case StateStopped:
		s.Stopped = int((p.stop.left(p.sw.now()) + time.Second - 1) / time.Second)
	}
	for i, q := range p.wire.queues {
		s.Queues = append(s.Queues, QueueStats{
			RxFrames: p.rx[i].frames.Load(), RxBytes: p.rx[i].bytes.Load(),
			TxFrames: p.tx[i].frames.Load(), TxBytes: p.tx[i].bytes.Load(),
		})
		if k, ok := q.(interface{ overruns() uint64 }); ok {
			p.drops[Overrun].Add(k.overruns())
		}
	}
	for why := range p.drops {
		if n := p.drops[why].Load(); n > 0 {
			s.Drops[Reason(why).String()] = n
		}
	}
	return s
}

// Dropped is how many frames the port has dropped for a reason.
func (p *Port) Dropped(why Reason) uint64 { return p.drops[why].Load() }
