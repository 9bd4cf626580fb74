package vswitch

import (
	"fmt"

	"vmnet/bridge/brport"
)

// MaxAnnounced is the most frames of Announce: one for each VLAN of a trunk, and one for each
// address of a guest.
const MaxAnnounced = 128

// maxAnnouncement is the length limit of a frame of Announce, in bytes.
const maxAnnouncement = 256

// Announce handles frames, without vnet headers, as if the port's guest had sent them, so that
// others learn where the guest is. If there is no such port, the error matches fs.ErrNotExist with
// errors.Is; if the frames are too many or too long, brport.ErrInvalid.
func (sw *Switch) Announce(name string, frames [][]byte) error {
	if len(frames) == 0 || len(frames) > MaxAnnounced {
		return fmt.Errorf("%w announcement: %d frames: want 1 to %d", brport.ErrInvalid, len(frames), MaxAnnounced)
	}
	for _, f := range frames {
		if len(f) > maxAnnouncement {
			return fmt.Errorf("%w announcement: a frame of %d bytes: want at most %d",
				brport.ErrInvalid, len(f), maxAnnouncement)
		}
	}
	sw.mu.Lock() // the port stays
	defer sw.mu.Unlock()
	p := sw.table.Load().find(name)
	if p == nil {
		return fmt.Errorf("announce on port %q: %w", name, ErrNoPort)
	}
	p.inject(frames)
	return nil
}

// inject handles frames, without vnet headers, as if they had come from the port's first queue.
func (p *Port) inject(frames [][]byte) {
	r := newReceiver(p.sw, p, 0)
	defer r.out.close()
	for len(frames) > 0 {
		n := min(len(frames), len(r.frames))
		for i, f := range frames[:n] {
			r.frames[i] = frame{data: append(make([]byte, vnetLen), f...)}
		}
		frames = frames[n:]
		p.path.Load().input(r, r.frames[:n])
	}
}
