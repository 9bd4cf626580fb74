package vhostuser

import (
	"runtime/debug"
	"sync"
	"sync/atomic"

	"vmnet/internal/vhostuser/guestmem"
	"vmnet/internal/vhostuser/virtq"
)

// A vring is a ring as the frontend sets it up. Device.mu guards it.
type vring struct {
	layout  virtq.Layout
	base    uint16 // what GET_VRING_BASE reports while it is not in use
	enabled bool
	// disabled says that the frontend has disabled the ring, rather than not enabled it yet: the
	// guest's frames are dropped. Those that wait in the ring when a frontend comes back are not.
	disabled bool
	kick     *event
	call     atomic.Pointer[event]

	mu   sync.Mutex  // held while a ring to the guest is used
	ring *virtq.Ring // nil while it is not in use
}

// usable reports whether frames pass.
func (r *vring) usable() bool { return r.ring != nil && r.enabled }

// served reports whether frames are taken from the ring.
func (r *vring) served() bool { return r.ring != nil && (r.enabled || r.disabled) }

// start begins to use the ring.
func (r *vring) start(mem *guestmem.Memory, features uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.ring, err = nil, mem.Fault(p)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	// The frontend's base counts only until the ring is in use. QEMU's is used.idx; that of DPDK's
	// virtio-user is 0 when a backend comes back (virtio_user_kick_queue in virtio_user_dev.c).
	ring, err := virtq.New(mem, r.layout)
	if err != nil {
		return err
	}
	ring.EventIndex = features&featureEventIndex != 0
	if err := r.kick.watch(); err != nil {
		return err
	}
	r.ring = ring
	return nil
}

// stop ends the use of the ring, and returns the next available entry.
func (r *vring) stop() uint16 {
	if r.ring != nil {
		r.base, r.ring = r.ring.Next(), nil
	}
	_ = r.kick.close()
	r.kick = nil
	return r.base
}

// interrupt wakes the guest's driver.
func (r *vring) interrupt() {
	if e := r.call.Load(); e != nil {
		e.signal()
	}
}

// setCall replaces the event by which the guest's driver is woken.
func (r *vring) setCall(e *event) error { return r.call.Swap(e).close() }

// reset forgets everything.
func (r *vring) reset() {
	r.stop()
	_ = r.setCall(nil)
	r.layout, r.base, r.enabled, r.disabled = virtq.Layout{}, 0, false, false
}
