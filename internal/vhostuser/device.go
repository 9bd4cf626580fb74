package vhostuser

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser/guestmem"
)

// MaxPairs is the most pairs of queues of a device. QEMU has more (VIRTIO_QUEUE_MAX in
// include/hw/virtio/virtio.h), but a message with a ring's eventfd has 8 bits for the ring's index.
const MaxPairs = 127

// Bounds of the MTU that a frontend may set, in bytes.
const (
	minMTU = 68
	maxMTU = 65535
)

// A Device is a virtio-net device, whose guest is behind the frontend that Serve talks to. Any
// goroutine may call its methods at any time, except that each Pair receives in one goroutine.
type Device struct {
	pairs  int
	notify func() // see New

	// Announce is called by Serve's goroutine with the address of a guest that has arrived by a
	// migration and does not announce itself. Set it before Serve is called. It may be nil.
	Announce func(mac net.HardwareAddr)

	mu       sync.RWMutex // see the package comment
	mem      *guestmem.Memory
	log      *guestmem.Log // what mem is logged to once the features ask for it; nil for none
	features uint64
	rings    []vring // of pair n: 2n to the guest, 2n+1 from it
	conn     *net.UnixConn
	closed   bool
	areas    []keptArea     // of mem, with their files
	live     *session       // that Serve handles
	suspend  chan suspended // answers a Suspend; nil for none

	counter *atomic.Uint64 // see Count; may be nil
	settled func()
	handled atomic.Uint64 // messages

	mtu     atomic.Int64
	known   State       // what notify was last called for; only Serve's goroutine uses it
	ending  atomic.Bool // the session is being ended from this side: nothing uses its rings
	failing sync.Mutex
	failed  error // why

	waiting []*Pair
}

// A State is what a device's user needs to know of its frontend.
type State struct {
	Ready  bool // the guest's driver can receive frames
	Limits offload.Limits
}

// New makes a device. changed is called by Serve's goroutine whenever the State may have changed.
func New(pairs int, changed func()) (*Device, error) {
	if pairs < 1 || pairs > MaxPairs {
		return nil, fmt.Errorf("%d pairs of queues: want 1 to %d", pairs, MaxPairs)
	}
	d := &Device{pairs: pairs, notify: changed, mem: guestmem.New(), rings: make([]vring, 2*pairs)}
	for n := range pairs {
		d.waiting = append(d.waiting, newPair(d, n))
	}
	return d, nil
}

// Pair returns pair n of the queues, counted from 0.
func (d *Device) Pair(n int) *Pair { return d.waiting[n] }

// State returns the current state. Without a frontend, the limits are the zero value but for the
// header's length.
func (d *Device) State() State {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := State{Limits: limitsOf(d.features), Ready: d.rings[0].usable()}
	s.Limits.MTU = int(d.mtu.Load())
	return s
}

// Close ends the current session, and makes Receive and further calls of Serve fail. It frees
// goroutines that a frontend keeps waiting.
func (d *Device) Close() error {
	d.fail(errClosed)
	for !d.mu.TryLock() {
		d.unblock()
		time.Sleep(closePoll)
	}
	d.closed = true
	for n := range d.waiting {
		d.wake(2*n + 1)
	}
	d.mu.Unlock()
	d.fail(errClosed) // a session that began meanwhile
	return nil
}

// closePoll is how often Close looks whether the last frames have been handled, which takes
// microseconds.
const closePoll = 100 * time.Microsecond

var (
	errClosed = fmt.Errorf("the device is closed: %w", fs.ErrClosed)
	errHeld   = errors.New("the frontend keeps a write to its eventfd waiting")
)

// fail ends the session.
func (d *Device) fail(err error) {
	d.failing.Lock()
	defer d.failing.Unlock()
	if d.failed != nil || d.conn == nil {
		return
	}
	d.failed = err
	d.ending.Store(true)
	_ = d.conn.Close()
}

func (d *Device) begin(s *session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing.Lock()
	defer d.failing.Unlock()
	switch {
	case d.closed:
		return errClosed
	case d.conn != nil:
		return errors.New("the device has a frontend already")
	}
	d.conn, d.live = s.conn, s
	return nil
}

// reset forgets all that the session has set up, and returns why this side has ended it, if it has.
func (d *Device) reset() error {
	d.mu.Lock()
	for i := range d.rings {
		d.rings[i].reset()
		d.wake(i)
	}
	d.mem.Unmap()
	d.mem, d.features = guestmem.New(), 0
	closeAreas(d.areas)
	d.areas, d.live = nil, nil
	d.dropLog()
	d.failing.Lock()
	err := d.failed
	d.conn, d.failed = nil, nil
	d.ending.Store(false)
	d.failing.Unlock()
	d.mu.Unlock()
	d.mtu.Store(0)
	d.changed()
	return err
}

// changed calls notify if the state has changed.
func (d *Device) changed() {
	if s := d.State(); s != d.known {
		d.known = s
		d.notify()
	}
}

func (d *Device) offers() uint64 {
	if d.pairs > 1 {
		return offered | featureMQ
	}
	return offered
}

// The caller of the methods below holds mu for writing.

func (d *Device) vring(index int) (*vring, error) {
	if index < 0 || index >= len(d.rings) {
		return nil, fmt.Errorf("ring %d: want less than %d", index, len(d.rings))
	}
	return &d.rings[index], nil
}

func (d *Device) running() bool {
	for i := range d.rings {
		if d.rings[i].ring != nil {
			return true
		}
	}
	return false
}

// remember replaces the memory. Rings that are not in the new one are stopped until the frontend
// sets them up again.
func (d *Device) remember(next *guestmem.Memory) {
	d.mem = next
	for i := range d.rings {
		if r := &d.rings[i]; r.ring != nil && r.ring.Place(next, r.layout) != nil {
			r.stop()
		}
		d.wake(i)
	}
}

// wake makes the receiver of a ring from the guest look at the device again.
func (d *Device) wake(ring int) {
	if ring%2 == 1 {
		select {
		case d.waiting[ring/2].woken <- struct{}{}:
		default:
		}
	}
}
