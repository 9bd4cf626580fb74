package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/offload"
)

// PortConfig says how a port should be. Its zero value is a port of a plain switch.
type PortConfig struct {
	// PortConfig has the same meaning as for a port of a kernel bridge. The switch filters
	// VLANs once a port has any. A port without VLAN and Trunk is then in VLAN 1, untagged.
	brport.Settings

	// MTU limits the length in bytes of frames that leave by the port, without Ethernet header
	// and VLAN tags. For a super-frame it limits each segment. 0 means the current MTU of the
	// wire's device if the wire follows it, otherwise 1500.
	MTU int `json:"mtu,omitempty"`

	// MACs lists the only source addresses that the port accepts; an empty list means any. In
	// the VLAN for untagged frames they are static in the FDB, so that no other port
	// can attract their frames.
	MACs []net.HardwareAddr `json:"macs,omitempty"`

	// MaxAddresses limits how many addresses are learned behind the port; 0 means only the
	// limit of the FDB. Further addresses are reached by flooding.
	MaxAddresses int `json:"max_addresses,omitempty"`

	// NoLoopGuard never stops the port for a loop. The loop's other port may still be stopped.
	// It is for an uplink on which another host may send the guests' broadcasts back on
	// purpose.
	NoLoopGuard bool `json:"no_loop_guard,omitempty"`

	Storm Storm `json:"storm,omitzero"`
}

const (
	defaultMTU = 1500
	minMTU     = 68
	maxMTU     = 65535
	maxMACs    = 64
)

// Validate checks what can be checked without the wire. Its error matches brport.ErrInvalid with
// errors.Is.
func (cfg PortConfig) Validate() error {
	if err := cfg.Settings.Validate(); err != nil {
		return err
	}
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
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
		return fmt.Errorf("limit of %d addresses: want 0 to %d", cfg.MaxAddresses, ways<<maxBits)
	}
	for _, mac := range cfg.MACs {
		if len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("address %s: want 6 bytes, not multicast", mac)
		}
	}
	return cfg.Storm.validate()
}

// A Port is a port of a Switch.
type Port struct {
	sw     *Switch
	name   string
	index  int // in the FDB and the switch's table
	wire   *Wire
	path   atomic.Pointer[path]
	cfg    PortConfig
	limits atomic.Pointer[offload.Limits]
	link   atomic.Pointer[LinkState] // state of the device; nil if it is not followed
	down   atomic.Bool               // no frames pass: its device is down, or the port has ended
	vlans  *vlans
	macs   []uint64

	broadcasts, multicasts, unknowns, refused bucket
	stop                                      stop

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

func newPort(sw *Switch, name string, index int, w *Wire, cfg PortConfig) *Port {
	p := &Port{
		sw: sw, name: name, index: index, wire: w, cfg: cfg, vlans: newVLANs(cfg.Settings),
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

// admits reports whether the port accepts a source address (PortConfig.MACs).
func (p *Port) admits(src uint64) bool { return len(p.macs) == 0 || slices.Contains(p.macs, src) }
