package vport

// A State says whether frames pass a port.
type State string

// The states of a port.
const (
	StateUp      State = "up"
	StateDown    State = "down"    // its device is down or has no carrier, or its guest no driver
	StateStopped State = "stopped" // stopped for a loop
	StateEnded   State = "ended"   // its other end is gone
)

// Stats has a port's state, and its counters since it was added.
type Stats struct {
	Name    string       `json:"name"`
	Kind    string       `json:"kind"` // kind of its wire, as vswitch.Wire.Kind returns it
	MTU     int          `json:"mtu"`  // in bytes, for frames that leave by it
	State   State        `json:"state"`
	Ended   string       `json:"ended,omitempty"`   // why it has ended
	Loops   uint64       `json:"loops,omitempty"`   // how often it was stopped for a loop
	Stopped int          `json:"stopped,omitempty"` // seconds until the stop ends
	Queues  []QueueStats `json:"queues"`

	FastPath *FastPath `json:"fast_path,omitempty"` // of a port of kind packet only

	// Drops counts dropped frames by reason, without zeros: frames that arrived on the port and
	// were refused, and frames that should have left by it.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// FastPath says whether the kernel forwards the port's frames to other ports where it can, so that
// they do not come to the switch. The port's other counters include them, as those of its first
// queue.
type FastPath struct {
	On     bool   `json:"on"`
	Why    string `json:"why,omitempty"`    // why not
	Frames uint64 `json:"frames,omitempty"` // that arrived on the port and that the kernel has forwarded
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
func (s Stats) Total() (total QueueStats) {
	for _, q := range s.Queues {
		total.RxFrames += q.RxFrames
		total.RxBytes += q.RxBytes
		total.TxFrames += q.TxFrames
		total.TxBytes += q.TxBytes
	}
	return total
}
