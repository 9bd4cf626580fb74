package vport

import "fmt"

// Storm limits the frames of a port that are flooded, in frames per second for each kind; 0 means
// no limit. A burst may have the frames of a tenth of a second. A super-frame counts as its
// segments. A flooded frame costs a system call for each port: without a limit, one guest can keep
// a switch with many ports busy.
type Storm struct {
	Broadcast int `json:"broadcast,omitempty"`
	Multicast int `json:"multicast,omitempty"`
	Unknown   int `json:"unknown,omitempty"` // unicast to addresses that are not in the FDB

	// Refused limits the frames of the port that the switch refuses: frames over the other
	// limits, from a source or in a VLAN that the port may not use, to a destination behind the
	// port itself, and invalid frames. Frames to another isolated port do not count. A port
	// over the limit is not read for a while. Its sender then has to wait, which costs the
	// other ports no time. All frames of the port wait too, so this limit is not for an uplink.
	Refused int `json:"refused,omitempty"`
}

// GuestFrames is the limit for untrusted guests, in frames per second. With it, whatever one guest
// does leaves the others on a switch of 64 ports nine tenths of their rate
// (BenchmarkLiveHostileGuest).
const GuestFrames = 1000

// GuestStorm limits a guest to that many frames per second of each kind; 0 means no limit.
func GuestStorm(frames int) Storm {
	return Storm{Broadcast: frames, Multicast: frames, Unknown: frames, Refused: frames}
}

// maxStorm is the largest valid limit, which is more than any port can send.
const maxStorm = 1e9

func (s Storm) validate() error {
	for _, n := range []int{s.Broadcast, s.Multicast, s.Unknown, s.Refused} {
		if n < 0 || n > maxStorm {
			return fmt.Errorf("storm limit of %d frames per second: want 0 to %d", n, int(maxStorm))
		}
	}
	return nil
}
