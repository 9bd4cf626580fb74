package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/offload"
)

// PortConfig says how a port should be. Its zero value is a port of a plain switch.
type PortConfig struct {
	// It means what it does to a port of a kernel bridge, which filters VLANs once a port has any:
	// then one without VLAN and Trunk is in VLAN 1, untagged.
	bridge.PortConfig

	// MTU is the most bytes that a frame may have that leaves by the port, without Ethernet header and VLAN tags; for
	// a super-frame, each of its segments. 0 is that of the wire's device, as it is at any time, where that is
	// followed, else 1500.
	MTU int `json:"mtu,omitempty"`

	// MACs are the only sources that frames may have which come in by the port; none means any. In the VLAN of
	// the port's untagged frames they are static in the FDB: nobody else can draw their frames away.
	MACs []net.HardwareAddr `json:"macs,omitempty"`

	// MaxAddresses is how many addresses are learned behind the port; 0 means as many as the FDB holds. Those beyond
	// are reached by flooding.
	MaxAddresses int `json:"max_addresses,omitempty"`

	// NoLoopGuard has the port never stopped for a loop, of which another port is part, too: for a way out where
	// somebody may send the guests' broadcasts back on purpose.
	NoLoopGuard bool `json:"no_loop_guard,omitempty"`

	Storm Storm `json:"storm,omitzero"`
}

const (
	defaultMTU = 1500
	minMTU     = 68
	maxMTU     = 65535
	maxMACs    = 64
)

// Validate checks what can be checked without the wire. Its error Is bridge.ErrInvalid.
func (cfg PortConfig) Validate() error {
	if err := cfg.PortConfig.Validate(); err != nil {
		return err
	}
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", bridge.ErrInvalid, err)
	}
	return nil
}

func (cfg PortConfig) validate() error {
	switch {
	case cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", cfg.MTU, minMTU, maxMTU)
	case len(cfg.MACs) > maxMACs:
		return fmt.Errorf("%d addresses: want at most %d", len(cfg.MACs), maxMACs)
	case cfg.MaxAddresses < 0 || cfg.MaxAddresses > ways<<maxBits:
		return fmt.Errorf("at most %d addresses: want 0 to %d", cfg.MaxAddresses, ways<<maxBits)
	}
	for _, mac := range cfg.MACs {
		if len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("address %s: want 6 bytes, not multicast", mac)
		}
	}
	return cfg.Storm.validate()
}

// A Port is one way into a Switch and out of it.
type Port struct {
	sw     *Switch
	name   string
	index  int // in the FDB and the switch's table
	wire   *Wire
	way    atomic.Pointer[way]
	cfg    PortConfig
	limits atomic.Pointer[offload.Limits]
	link   atomic.Pointer[LinkState] // the device's; nil where it is not followed
	down   atomic.Bool               // nothing passes: its device is down, or it has ended
	vlans  *vlans
	macs   []uint64

	broadcasts, multicasts, unknowns, refused bucket
	stop                                      stop

	rx, tx []counters // by queue
	drops  [Reasons]atomic.Uint64

	receivers sync.WaitGroup
	end       sync.Once
	ended     chan struct{}
	err       error // why it ended; read it when ended is closed
}

// A way is how frames go through a port: what is done with a batch that came in, and the queues that frames leave by. It is never
// changed, but replaced by another, as a switch's table is: who captures wraps it.
type way struct {
	input  func(r *receiver, frames []frame)
	queues []queue
	views  []*view // of captures
}

// counters are one queue's, in one direction. They fill a cache line, so that no two queues share one.
type counters struct {
	frames, bytes atomic.Uint64
	_             [48]byte
}

func (c *counters) add(frames, bytes uint64) {
	c.frames.Add(frames)
	c.bytes.Add(bytes)
}

func newPort(sw *Switch, name string, index int, w *Wire, cfg PortConfig) *Port {
	p := &Port{
		sw: sw, name: name, index: index, wire: w, cfg: cfg, vlans: newVLANs(cfg.PortConfig),
		rx: make([]counters, len(w.queues)), tx: make([]counters, len(w.queues)),
		ended: make(chan struct{}),
	}
	limits := w.limits
	limits.MTU = cmp.Or(cfg.MTU, w.mtu, defaultMTU)
	p.limits.Store(&limits)
	if w.link != nil {
		s := w.link.State()
		p.link.Store(&s)
		p.down.Store(isDown(s))
	}
	for _, mac := range cfg.MACs {
		p.macs = append(p.macs, macWord(mac))
	}
	p.broadcasts.limit(cfg.Storm.Broadcast)
	p.multicasts.limit(cfg.Storm.Multicast)
	p.unknowns.limit(cfg.Storm.Unknown)
	p.refused.limit(cfg.Storm.Refused)
	p.way.Store(newWay(p, nil))
	return p
}

// Name is the port's name in its switch.
func (p *Port) Name() string { return p.name }

// Ended is closed when the port's other end went away: its device was removed, its socket's peer closed. The port stays in
// the switch, where frames for it count as dropped, until it is removed. It is closed by that, too.
func (p *Port) Ended() <-chan struct{} { return p.ended }

// Err tells why the port ended; nil before. After RemovePort, if nothing came before that, it Is fs.ErrClosed.
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

// admits tells whether the port's lock lets a source through.
func (p *Port) admits(src uint64) bool { return len(p.macs) == 0 || slices.Contains(p.macs, src) }
