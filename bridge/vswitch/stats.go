package vswitch

import "time"

// A PortState says whether frames pass a port.
type PortState string

// The states of a port.
const (
	StateUp      PortState = "up"
	StateDown    PortState = "down"    // its device is down or has no carrier
	StateStopped PortState = "stopped" // stopped for a loop
	StateEnded   PortState = "ended"   // its other end is gone
)

// State returns the port's current state. A port that does not follow its device is up until it
// ends.
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

// PortStats has a port's state, and its counters since it was added.
type PortStats struct {
	Name    string       `json:"name"`
	Kind    string       `json:"kind"` // kind of its wire: "tap", "packet" or "socket"
	MTU     int          `json:"mtu"`  // in bytes, for frames that leave by it
	State   PortState    `json:"state"`
	Ended   string       `json:"ended,omitempty"`   // why it has ended
	Loops   uint64       `json:"loops,omitempty"`   // how often it was stopped for a loop
	Stopped int          `json:"stopped,omitempty"` // seconds until the stop ends
	Queues  []QueueStats `json:"queues"`

	// Drops counts dropped frames by reason, without zeros: frames that arrived on the port and
	// were refused, and frames that should have left by it.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// QueueStats has the counters of one queue. Rx counts frames that the switch received from it, Tx
// frames that it sent to it. A super-frame counts as one. Bytes are those of Ethernet frames,
// without vnet headers.
type QueueStats struct {
	RxFrames uint64 `json:"rx_frames"`
	RxBytes  uint64 `json:"rx_bytes"`
	TxFrames uint64 `json:"tx_frames"`
	TxBytes  uint64 `json:"tx_bytes"`
}

// Total returns the sum over all queues.
func (s PortStats) Total() (total QueueStats) {
	for _, q := range s.Queues {
		total.RxFrames += q.RxFrames
		total.RxBytes += q.RxBytes
		total.TxFrames += q.TxFrames
		total.TxBytes += q.TxBytes
	}
	return total
}

// Stats returns a snapshot of the counters.
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

// Dropped returns the number of frames that the port has dropped for a reason.
func (p *Port) Dropped(why Reason) uint64 { return p.drops[why].Load() }
