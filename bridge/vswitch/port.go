package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
)

// defaultMTU is the MTU of a port that has none of its own, and whose device reports none.
const defaultMTU = 1500

// A Port is a port of a Switch.
type Port struct {
	sw       *Switch
	name     string
	index    int // in the FDB and the switch's table
	wire     *Wire
	path     atomic.Pointer[path]
	set      atomic.Pointer[settings]
	limits   atomic.Pointer[offload.Limits]
	limiting sync.Mutex                     // held while limits change
	link     atomic.Pointer[rtnl.LinkState] // state of the device; nil if it is not followed
	followed atomic.Pointer[rtnl.Followed]  // see Followed
	changed  chan struct{}                  // see LinkChanged
	down     atomic.Bool                    // its device or guest is down, or the port has ended
	stop     stop
	fast     *fastPort // nil if the kernel never forwards its frames

	rx, tx []counters // one for each queue
	drops  [Reasons]atomic.Uint64

	receivers sync.WaitGroup
	end       sync.Once
	ended     chan struct{}
	err       error // why it ended; valid once ended is closed
}

// A path is how frames go through a port: the handler of incoming batches, and the queues for
// outgoing frames. It is immutable and replaced as a whole, like a switch's table. A capture wraps
// it.
type path struct {
	input  func(r *receiver, frames []frame)
	queues []queue
	views  []*view // the captures of the port
}

// counters counts one direction of a queue. It fills a cache line, so that no two queues share one.
type counters struct {
	frames, bytes atomic.Uint64
	_             [48]byte
}

func (c *counters) add(frames, bytes uint64) {
	c.frames.Add(frames)
	c.bytes.Add(bytes)
}

func newPort(sw *Switch, name string, index int, w *Wire, cfg vport.Config) *Port {
	p := &Port{
		sw: sw, name: name, index: index, wire: w,
		rx: make([]counters, len(w.queues)), tx: make([]counters, len(w.queues)),
		ended: make(chan struct{}), changed: make(chan struct{}, 1),
	}
	p.set.Store(newSettings(cfg))
	if w.link != nil {
		s, at := w.link.State(), w.link.Followed()
		p.link.Store(&s)
		p.followed.Store(&at)
		p.down.Store(isDown(s))
	}
	if w.frontends != nil || w.stream != nil && w.stream.in == nil {
		p.down.Store(true) // until a guest's driver is ready, or somebody is connected
	}
	p.limit()
	p.path.Store(newPath(p, nil))
	return p
}

// Name returns the port's name in its switch.
func (p *Port) Name() string { return p.name }

// Ended returns a channel that is closed when the port's other end is gone: its device was removed,
// or its socket's peer was closed. The port stays in the switch until RemovePort; frames for it
// count as dropped. RemovePort closes the channel too.
func (p *Port) Ended() <-chan struct{} { return p.ended }

// Err returns why the port has ended, or nil if it has not. If RemovePort has ended it, the error
// matches fs.ErrClosed with errors.Is.
func (p *Port) Err() error {
	select {
	case <-p.ended:
		return p.err
	default:
		return nil
	}
}

func (p *Port) endWith(err error) {
	p.end.Do(func() {
		p.err = errors.Join(fmt.Errorf("port %s: %w", p.name, err), p.wire.unclaim())
		close(p.ended)
		p.setDown(true)
	})
}

func (p *Port) drop(why Reason) { p.drops[why].Add(1) }

// limit makes the port take frames of the MTU that its settings have, or else its device.
func (p *Port) limit() {
	p.limiting.Lock()
	defer p.limiting.Unlock()
	limits, device := p.wire.takes()
	if link := p.link.Load(); link != nil {
		device = link.MTU
	}
	limits.MTU = cmp.Or(p.set.Load().cfg.MTU, device, defaultMTU)
	p.limits.Store(&limits)
	p.sw.fast.revoke(p)
}
