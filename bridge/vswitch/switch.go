package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vmnet/bridge/vswitch/vport"
)

// Config says how a switch should be. Its zero value is valid.
type Config struct {
	Ageing    time.Duration // how long the FDB keeps an address that is not seen; 0 means 300 s
	Addresses int           // number of addresses for which the FDB has room; 0 means 16384

	// VLANFiltering filters VLANs from the start. Otherwise the switch starts to filter
	// when the first port with VLANs is added.
	VLANFiltering bool

	// Poll is how long the switch looks for further frames in a guest's memory before it waits for
	// the guest to say that there are some (vhost-user). 0 means not at all. It does so with a
	// thread on each of PollCPUs, which the guests share, or in each guest's own goroutine if there
	// are none.
	Poll     time.Duration
	PollCPUs []int

	// NoFastPath has the switch handle all frames itself. Otherwise the kernel forwards frames
	// between packet ports where it can (fastpath.go).
	NoFastPath bool

	// Notice, if not nil, is called for what the switch does on its own, such as stopping a
	// port. Only one goroutine calls it.
	Notice func(text string)
}

// A Switch forwards frames between its ports. Any goroutine may call its methods at any time.
type Switch struct {
	fdb     *FDB
	start   time.Time
	held    atomic.Bool // see Hold
	table   atomic.Pointer[table]
	echoes  *echoes
	settled atomic.Int64 // time until which a loop's frames may be in flight
	notices chan string
	pollers *pollers
	fast    fastPaths

	mu     sync.Mutex // held while ports change
	closed bool
	stop   chan struct{}
	clock  sync.WaitGroup

	captures []*captureSession
	watchers sync.WaitGroup // goroutines of captures
}

// A table is the set of ports at one time. It is immutable and replaced as a whole, so that readers
// need no lock.
type table struct {
	ports   []*Port // sorted by name
	by      []*Port // by index, with gaps
	filters bool    // the switch filters VLANs; see vlan.go
}

// Errors of AddPort and RemovePort, and the error with which a removed port ends.
var (
	errTooMany = fmt.Errorf("the switch already has %d ports", vport.MaxPorts)
	errTaken   = portError{"the switch has a port of that name", fs.ErrExist}
	errRemoved = fmt.Errorf("it was removed: %w", fs.ErrClosed)
	errClosed  = fmt.Errorf("the switch is closed: %w", fs.ErrClosed)
)

// ErrNoPort is returned for an unknown port name. It matches fs.ErrNotExist with errors.Is.
var ErrNoPort error = portError{"the switch has no port of that name", fs.ErrNotExist}

// portError matches an error of package fs without its text, which is about files.
type portError struct {
	text string
	is   error
}

func (e portError) Error() string { return e.text }
func (e portError) Unwrap() error { return e.is }

// New makes a switch without ports. The caller must close it.
func New(cfg Config) *Switch {
	sw := &Switch{
		fdb: NewFDB(cfg.Addresses, cfg.Ageing), start: time.Now(), stop: make(chan struct{}),
		echoes: newEchoes(), notices: make(chan string, maxNotices),
	}
	sw.table.Store(&table{filters: cfg.VLANFiltering})
	sw.fast.begin(sw.fdb, cfg.NoFastPath)
	sw.pollers = newPollers(sw, cfg.Poll, cfg.PollCPUs)
	peers := newPeers()
	sw.clock.Go(func() { sw.tick(peers) })
	if cfg.Notice != nil {
		sw.clock.Go(func() { sw.deliver(cfg.Notice) })
	}
	return sw
}

// maxNotices limits the notices that wait for Config.Notice; further ones are lost.
const maxNotices = 64

// notice queues a notice for Config.Notice without waiting.
func (sw *Switch) notice(format string, args ...any) {
	select {
	case sw.notices <- fmt.Sprintf(format, args...):
	default:
	}
}

// deliver calls notice for each queued notice, until the switch is closed.
func (sw *Switch) deliver(notice func(text string)) {
	for {
		select {
		case text := <-sw.notices:
			notice(text)
		case <-sw.stop:
			return
		}
	}
}

// tick runs once a second: it ages the FDB and ends dead ports.
func (sw *Switch) tick(peers *peers) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	defer peers.close()
	for {
		select {
		case <-t.C:
			now := uint32(time.Since(sw.start) / time.Second)
			sw.fast.tick(now)
			sw.fdb.Sweep(now)
			sw.forgetDead(peers)
			for _, p := range sw.table.Load().ports {
				if p.wire.overlay != nil {
					p.tickOverlay(now)
				}
			}
		case <-sw.stop:
			return
		}
	}
}

// forgetDead ends ports whose socket's other end was closed, and sessions of frontends that keep
// the switch waiting. For ports that are down, it removes addresses that were learned from frames
// in flight.
func (sw *Switch) forgetDead(peers *peers) {
	for _, p := range sw.table.Load().ports {
		if f := p.wire.frontends; f != nil {
			f.device.Tick()
		}
		switch q, ok := p.wire.queues[0].(*mmsgQueue); {
		case p.isDown():
			p.forget()
		case ok && peers.closed(q.file):
			p.endWith(errPeerClosed)
		}
	}
}

// now returns the time in nanoseconds since the switch's start.
func (sw *Switch) now() int64 { return int64(time.Since(sw.start)) }

// AddPort adds a port with that wire to the running switch. It takes ownership of the wire, and
// closes it on error. If the name is taken, or another port is locked to one of the addresses, the
// error matches fs.ErrExist with errors.Is. If the switch is closed, it matches fs.ErrClosed.
func (sw *Switch) AddPort(name string, w *Wire, cfg vport.Config) (*Port, error) {
	p, err := sw.addPort(name, w, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add port %q: %w", name, err), w.Close())
	}
	return p, nil
}

func (sw *Switch) addPort(name string, w *Wire, cfg vport.Config) (*Port, error) {
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
	case name == "" || len(name) > vport.MaxName:
		return nil, fmt.Errorf("name of %d bytes: want 1 to %d", len(name), vport.MaxName)
	case old.find(name) != nil:
		return nil, errTaken
	case index == vport.MaxPorts:
		return nil, errTooMany
	}
	p := newPort(sw, name, index, w, cfg)
	sw.fdb.LimitPort(index, cfg.MaxAddresses)
	if err := sw.lock(p, p.set.Load(), old); err != nil {
		sw.fdb.FlushPort(index, true)
		return nil, err
	}
	if w.overlay != nil {
		w.overlay.begin(p)
	}
	if w.tun != nil {
		w.tun.begin(p)
	}
	sw.fast.join(p)
	sw.replace(old, old.with(p), p)
	if w.link != nil {
		p.receivers.Go(p.follow)
	}
	if w.frontends != nil {
		w.frontends.port = p
		p.receivers.Go(p.serveFrontends)
	}
	if w.stream != nil {
		w.stream.port = p
	}
	for i := range w.queues {
		r := newReceiver(sw, p, i)
		p.receivers.Go(r.run)
	}
	return p, nil
}

// replace replaces the table, for the sake of port p.
func (sw *Switch) replace(old, next *table, p *Port) {
	sw.table.Store(next)
	if !next.filters || old.filters {
		return
	}
	sw.fdb.FlushLearned() // it has the sources of tagged frames in the default VLAN
	sw.fast.revokeAll()
	if len(old.ports) > 0 {
		sw.notice("the switch filters VLANs from now on, since port %s has VLANs: "+
			"ports without VLANs are in VLAN %d, untagged", p.name, defaultVLAN)
	}
}

// lock adds static entries for the addresses that a port with these settings is locked to. It fails
// if another port has a static entry for one of them.
func (sw *Switch) lock(p *Port, set *settings, others *table) error {
	for _, k := range set.locked() {
		if at := sw.fdb.staticPort(k); at >= 0 && at != p.index && others.by[at] != nil {
			return others.by[at].owns(others, k)
		}
		if err := sw.fdb.AddStatic(k, p.index); err != nil {
			return err
		}
	}
	return nil
}

// owns returns the error for an address that the port has a static entry for.
func (p *Port) owns(t *table, k Key) error {
	return portError{fmt.Sprintf("%s%s is a static address of port %s", k.MAC(), t.inVLAN(k), p.name), fs.ErrExist}
}

// RemovePort removes a port: it closes the wire and removes the port's addresses from the FDB. When
// it returns, no frame of the port is in flight. If there is no such port, the error matches
// fs.ErrNotExist with errors.Is.
func (sw *Switch) RemovePort(name string) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	p := sw.table.Load().find(name)
	if p == nil {
		return fmt.Errorf("remove port %q: %w", name, ErrNoPort)
	}
	return sw.remove(p)
}

// remove removes a port. The order matters: all learning for this port must have stopped before
// another port gets its index, which cannot happen while sw.mu is held.
func (sw *Switch) remove(p *Port) error {
	sw.fast.leave(p, false)
	sw.table.Store(sw.table.Load().without(p))
	p.endWith(errRemoved)
	err := p.wire.Close()
	p.receivers.Wait()
	err = errors.Join(err, p.fast.close())
	sw.fdb.FlushPort(p.index, true)
	sw.uncapture(p)
	if err != nil {
		return fmt.Errorf("remove port %q: %w", p.name, err)
	}
	return nil
}

// Close removes all ports and stops the switch. A second call does nothing.
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

// Ports returns the ports, sorted by name.
func (sw *Switch) Ports() []*Port { return slices.Clone(sw.table.Load().ports) }

// FDB returns the switch's FDB, which identifies ports by PortIndex.
func (sw *Switch) FDB() *FDB { return sw.fdb }

// FiltersVLANs reports whether the switch filters VLANs: from the start, or since a port with
// VLANs was added.
func (sw *Switch) FiltersVLANs() bool { return sw.table.Load().filters }

// PortIndex returns the number by which the FDB identifies the port.
func (p *Port) PortIndex() int { return p.index }

func (t *table) find(name string) *Port {
	for _, p := range t.ports {
		if p.name == name {
			return p
		}
	}
	return nil
}

// inVLAN names a key's VLAN for a message, or returns "" if the switch does not filter VLANs.
func (t *table) inVLAN(k Key) string {
	if !t.filters {
		return ""
	}
	return fmt.Sprintf(" in VLAN %d", k.VLAN())
}

func (t *table) with(p *Port) *table {
	next := &table{
		ports: append(slices.Clone(t.ports), p), by: slices.Clone(t.by),
		filters: t.filters || p.set.Load().cfg.HasVLANs(),
	}
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
