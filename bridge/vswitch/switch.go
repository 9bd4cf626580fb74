// Package vswitch is a learning Ethernet switch in userspace, for where the kernel may not bridge: a frame comes in by
// a queue, its source is learned, and the goroutine that read it writes it to the queues of the ports that it is for. No
// frame is allocated, copied to another goroutine, or waited for with a lock.
//
// The vnet header travels along: a super-frame of 64 KiB crosses in one piece to a port that takes it. For one that does not,
// package offload finishes it.
//
// What it does follows IEEE 802.1D and 802.1Q as the kernel's bridge does (net/bridge/br_input.c, br_forward.c), without
// a spanning tree and without snooping of multicast groups.
package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how a switch should be. Its zero value is good.
type Config struct {
	Ageing    time.Duration // after which an address that was not seen is forgotten; 0 means 300 s
	Addresses int           // that the FDB has room for; 0 means 16384

	// VLANFiltering keeps VLANs apart from the start, and not only from the first port on that was
	// given VLANs.
	VLANFiltering bool

	// Notice, if not nil, is told of what the switch has done of itself: a port that it has
	// stopped, for instance. It is called by one goroutine.
	Notice func(text string)
}

// A Switch passes frames between its ports. Its methods may be called at any time, by any goroutine.
type Switch struct {
	fdb     *FDB
	start   time.Time
	table   atomic.Pointer[table]
	echoes  *echoes
	settled atomic.Int64 // when what a loop has left under way is gone
	notices chan string

	mu     sync.Mutex // of whoever changes the ports
	closed bool
	stop   chan struct{}
	clock  sync.WaitGroup

	captures []*capture
	watchers sync.WaitGroup // of captures
}

// A table is the ports at one time. It is never changed, but replaced by another: who uses it needs no lock.
type table struct {
	ports   []*Port // in the order of their names
	by      []*Port // by index, with gaps
	filters bool    // VLANs; see vlan.go
}

// maxName is as long as an altname may be.
const maxName = 127

// Errors of AddPort and RemovePort, and what a removed port ends with.
var (
	errTooMany = fmt.Errorf("the switch has %d ports already", maxPorts)
	errTaken   = portError{"the switch has a port of that name", fs.ErrExist}
	errRemoved = fmt.Errorf("it was removed: %w", fs.ErrClosed)
	errClosed  = fmt.Errorf("the switch is closed: %w", fs.ErrClosed)
)

// ErrNoPort is an unknown port's name. It Is fs.ErrNotExist.
var ErrNoPort error = portError{"the switch has no port of that name", fs.ErrNotExist}

// portError Is an error of package fs, whose words are about files.
type portError struct {
	text string
	is   error
}

func (e portError) Error() string { return e.text }
func (e portError) Unwrap() error { return e.is }

// New makes a switch without ports. Close it.
func New(cfg Config) *Switch {
	sw := &Switch{
		fdb: NewFDB(cfg.Addresses, cfg.Ageing), start: time.Now(), stop: make(chan struct{}),
		echoes: newEchoes(), notices: make(chan string, maxNotices),
	}
	sw.table.Store(&table{filters: cfg.VLANFiltering})
	peers := newPeers()
	sw.clock.Go(func() { sw.tick(peers) })
	if cfg.Notice != nil {
		sw.clock.Go(func() { sw.tell(cfg.Notice) })
	}
	return sw
}

// maxNotices may wait for whoever reads them; more are lost.
const maxNotices = 64

// notice tells Config.Notice of something, without waiting.
func (sw *Switch) notice(format string, args ...any) {
	select {
	case sw.notices <- fmt.Sprintf(format, args...):
	default:
	}
}

func (sw *Switch) tell(notice func(text string)) {
	for {
		select {
		case text := <-sw.notices:
			notice(text)
		case <-sw.stop:
			return
		}
	}
}

// tick is the FDB's clock, as coarse as ageing allows.
func (sw *Switch) tick(peers *peers) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	defer peers.close()
	for {
		select {
		case <-t.C:
			sw.fdb.Sweep(uint32(time.Since(sw.start) / time.Second))
			sw.forgetDead(peers)
		case <-sw.stop:
			return
		}
	}
}

// forgetDead ends ports whose socket's other end was closed, and forgets what was learned behind
// ports that are down, from frames that were under way then.
func (sw *Switch) forgetDead(peers *peers) {
	for _, p := range sw.table.Load().ports {
		switch q, ok := p.wire.queues[0].(*socketQueue); {
		case p.down.Load():
			p.forget()
		case ok && peers.closed(q.file):
			p.endWith(errPeerClosed)
		}
	}
}

// now is in nanoseconds since the switch's start.
func (sw *Switch) now() int64 { return int64(time.Since(sw.start)) }

// AddPort plugs a wire in, while the switch runs. It takes the wire over, and closes it where there is an error: that of a taken
// name, or of an address locked to another port, Is fs.ErrExist, and a closed switch's fs.ErrClosed.
func (sw *Switch) AddPort(name string, w *Wire, cfg PortConfig) (*Port, error) {
	p, err := sw.addPort(name, w, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add port %q: %w", name, err), w.Close())
	}
	return p, nil
}

func (sw *Switch) addPort(name string, w *Wire, cfg PortConfig) (*Port, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	old := sw.table.Load()
	index := slices.Index(old.by, nil)
	if index < 0 {
		index = len(old.by)
	}
	switch {
	case sw.closed:
		return nil, errClosed
	case name == "" || len(name) > maxName:
		return nil, fmt.Errorf("a name of %d bytes: want 1 to %d", len(name), maxName)
	case old.find(name) != nil:
		return nil, errTaken
	case index == maxPorts:
		return nil, errTooMany
	}
	p := newPort(sw, name, index, w, cfg)
	sw.fdb.LimitPort(index, cfg.MaxAddresses)
	if err := sw.lock(p, old); err != nil {
		sw.fdb.FlushPort(index, true)
		return nil, err
	}
	next := old.with(p)
	sw.table.Store(next)
	if next.filters && !old.filters {
		sw.fdb.FlushLearned() // from tagged frames, too, as of one VLAN
		if len(old.ports) > 0 {
			sw.notice("VLANs are kept apart from now on, since port %s has any: ports without are in VLAN %d, untagged", name, defaultVLAN)
		}
	}
	if w.link != nil {
		p.receivers.Go(p.follow)
	}
	for i := range w.queues {
		r := newReceiver(sw, p, i)
		p.receivers.Go(r.run)
	}
	return p, nil
}

// lock makes the addresses that a port is locked to its own, which must not be another's for good.
func (sw *Switch) lock(p *Port, others *table) error {
	for _, k := range p.locked() {
		if at := sw.fdb.staticPort(k); at >= 0 && at != p.index && others.by[at] != nil {
			return others.by[at].owns(others, k)
		}
		if err := sw.fdb.AddStatic(k, p.index); err != nil {
			return err
		}
	}
	return nil
}

// owns is the error that an address is the port's for good.
func (p *Port) owns(t *table, k Key) error {
	return portError{fmt.Sprintf("%s%s is port %s's for good", k.MAC(), t.inVLAN(k), p.name), fs.ErrExist}
}

// locked are the keys of the addresses that are a port's own: in the VLAN of its untagged frames.
func (p *Port) locked() []Key {
	if !p.vlans.untagged {
		return nil
	}
	var keys []Key
	for _, mac := range p.macs {
		keys = append(keys, keyOf(mac, p.vlans.native))
	}
	return keys
}

// RemovePort unplugs a port: its wire is closed, what was learned behind it forgotten. When it returns no frame of the port's
// is under way. No such port is an error that Is fs.ErrNotExist.
func (sw *Switch) RemovePort(name string) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	p := sw.table.Load().find(name)
	if p == nil {
		return fmt.Errorf("remove port %q: %w", name, ErrNoPort)
	}
	return sw.remove(p)
}

// remove's order matters: nobody may learn for this port any more when another one gets its index, which is not before
// sw.mu is free.
func (sw *Switch) remove(p *Port) error {
	sw.table.Store(sw.table.Load().without(p))
	p.endWith(errRemoved)
	err := p.wire.Close()
	p.receivers.Wait()
	sw.fdb.FlushPort(p.index, true)
	sw.uncapture(p)
	if err != nil {
		return fmt.Errorf("remove port %q: %w", p.name, err)
	}
	return nil
}

// Close removes all ports, and ends. Called again, it does nothing.
func (sw *Switch) Close() error {
	err := sw.close()
	sw.watchers.Wait()
	return err
}

func (sw *Switch) close() error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.closed {
		return nil
	}
	sw.closed = true
	var errs []error
	for _, p := range sw.table.Load().ports {
		errs = append(errs, sw.remove(p))
	}
	close(sw.stop)
	sw.clock.Wait()
	return errors.Join(errs...)
}

// Ports are the ports, in the order of their names.
func (sw *Switch) Ports() []*Port { return slices.Clone(sw.table.Load().ports) }

// FDB is the switch's. It knows ports by PortIndex.
func (sw *Switch) FDB() *FDB { return sw.fdb }

// FiltersVLANs reports whether the switch keeps VLANs apart: from the start, or since a port was
// given VLANs.
func (sw *Switch) FiltersVLANs() bool { return sw.table.Load().filters }

// PortIndex is what the FDB calls a port of the switch.
func (p *Port) PortIndex() int { return p.index }

func (t *table) find(name string) *Port {
	for _, p := range t.ports {
		if p.name == name {
			return p
		}
	}
	return nil
}

// inVLAN names a key's VLAN in a message, where the switch knows any.
func (t *table) inVLAN(k Key) string {
	if !t.filters {
		return ""
	}
	return fmt.Sprintf(" in VLAN %d", k.VLAN())
}

func (t *table) with(p *Port) *table {
	next := &table{ports: append(slices.Clone(t.ports), p), by: slices.Clone(t.by), filters: t.filters || p.cfg.HasVLANs()}
	slices.SortFunc(next.ports, func(a, b *Port) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	if p.index == len(next.by) {
		next.by = append(next.by, nil)
	}
	next.by[p.index] = p
	return next
}

func (t *table) without(p *Port) *table {
	next := &table{by: slices.Clone(t.by), filters: t.filters}
	for _, other := range t.ports {
		if other != p {
			next.ports = append(next.ports, other)
		}
	}
	next.by[p.index] = nil
	return next
}
