package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// Kind is what an event is about: virDomainEventID.
type Kind int32

// The kinds that can be subscribed to.
const (
	Lifecycle           Kind = 0  // VIR_DOMAIN_EVENT_ID_LIFECYCLE
	DeviceRemoved       Kind = 15 // VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: the guest has let it go
	DeviceAdded         Kind = 19 // VIR_DOMAIN_EVENT_ID_DEVICE_ADDED
	DeviceRemovalFailed Kind = 22 // VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: the guest refuses
	MetadataChange      Kind = 23 // VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, of the running domain or of what is stored
)

// Change is what happened to a domain: virDomainEventType.
type Change int32

// The changes (VIR_DOMAIN_EVENT_...).
const (
	Defined     Change = 0
	Undefined   Change = 1
	Started     Change = 2
	Suspended   Change = 3
	Resumed     Change = 4
	Stopped     Change = 5
	Shutdown    Change = 6
	PMSuspended Change = 7
	Crashed     Change = 8
)

// Event is a message about a domain that libvirt sends unasked.
type Event struct {
	Kind   Kind
	Domain Domain
	Change Change // of Lifecycle
	Detail int32  // of Change: virDomainEventStoppedDetailType and so on
	Device string // the device's alias; of the kinds that are about one
	URI    string // the namespace of the element; of MetadataChange, and empty for a title or description
}

// A Subscription receives events. Close it.
type Subscription struct {
	// C delivers the events in libvirt's order. It is closed when the subscription
	// or its connection ends.
	C <-chan Event

	conn   *Conn
	c      chan Event
	closed bool // under conn.mu
	lost   atomic.Uint64
}

// topic is what can be registered for. Libvirt takes each once on a connection, so that the
// subscriptions to one share it.
type topic struct {
	kind Kind
	all  bool // domains
	dom  UUID
}

// registration is a topic that libvirt tells us of.
type registration struct {
	topic
	callback int32 // libvirt's number for it
	subs     []*Subscription
}

// registry is a connection's registrations. Conn.mu guards all but token.
type registry struct {
	token     chan struct{} // taken while libvirt has not answered a registration, or its end
	topics    map[topic]*registration
	callbacks map[int32]*registration
	expected  bool // the reply with a callback number is due
	early     []early
	missed    uint64 // early ones for which there was no room
}

func newRegistry() registry {
	return registry{token: make(chan struct{}, 1), topics: map[topic]*registration{}, callbacks: map[int32]*registration{}}
}

// early is an event whose number we have not been told yet: libvirt may send it before its reply.
type early struct {
	callback int32
	event    Event
}

const (
	maxEarly = 1024     // events kept for the registration under way
	maxEvent = 16 << 10 // bytes; names of domains and devices make fewer, since files are named after them
)

// Subscribe delivers events of the given kinds of one domain, or of all if dom is nil, from
// now on: also those that libvirt sends before Subscribe returns. At most buffer events (at least 1)
// wait to be received; further ones are dropped and counted, never waited for: a subscriber that
// has [Subscription.Lost] some must look at the domain instead. Each kind is a call to libvirt.
func (c *Conn) Subscribe(ctx context.Context, dom *Domain, buffer int, kinds ...Kind) (*Subscription, error) {
	if len(kinds) == 0 {
		return nil, errors.New("subscribe to no kind of event")
	}
	ch := make(chan Event, max(buffer, 1))
	s := &Subscription{C: ch, conn: c, c: ch}
	for _, kind := range kinds {
		if err := c.register(ctx, s, kind, dom); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// register adds one kind to s. Where libvirt must be asked, the reader takes the callback number
// out of the reply and gives the token back (install), also when ctx has ended meanwhile.
func (c *Conn) register(ctx context.Context, s *Subscription, kind Kind, dom *Domain) error {
	p, t := connectDomainEventCallbackRegisterAny, topic{kind: kind, all: dom == nil}
	if dom != nil {
		t.dom = dom.UUID
	}
	select {
	case c.events.token <- struct{}{}:
	case <-c.done:
		return fmt.Errorf("%s: %w", p.name, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s: another one is not answered yet: %w", p.name, context.Cause(ctx))
	}
	if c.join(s, t) {
		<-c.events.token
		return nil
	}
	m, err := c.roundTrip(ctx, &call{procedure: p, registers: &registration{topic: t, subs: []*Subscription{s}}}, func(e *encoder) {
		e.int32(int32(kind))
		e.present(dom != nil)
		if dom != nil {
			e.domain(*dom)
		}
	}, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return m.decode(p.name, func(d *decoder) { d.int32() })
}

// join adds s to a topic that libvirt tells us of already; false where it does not.
func (c *Conn) join(s *Subscription, t topic) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.events.topics[t]
	if r == nil || c.err != nil {
		return false
	}
	if !slices.Contains(r.subs, s) {
		r.subs = append(r.subs, s)
	}
	return true
}

// settle notes that the reply to a registration has come, or never will. Conn.mu is held.
func (r *registry) settle() {
	r.expected, r.early, r.missed = false, nil, 0
	<-r.token
}

// install acts on the reply to a registration. Conn.mu is held.
func (c *Conn) install(r *registration, m message) {
	defer c.events.settle()
	d := decoder{buf: m.payload}
	r.callback = d.int32()
	if m.status != statusOK || d.end() != nil {
		return
	}
	c.events.topics[r.topic], c.events.callbacks[r.callback] = r, r
	r.subs = slices.DeleteFunc(r.subs, func(s *Subscription) bool { return s.closed })
	if len(r.subs) == 0 { // whoever asked has given up meanwhile
		c.drop(r)
		return
	}
	for _, s := range r.subs {
		s.lost.Add(c.events.missed)
	}
	for _, e := range c.events.early {
		if e.callback == r.callback {
			r.deliver(e.event)
		}
	}
}

// drop tells libvirt, in the background, that nobody wants the topic any more, unless
// somebody does by then. Conn.mu is held.
func (c *Conn) drop(r *registration) {
	if c.err != nil {
		return
	}
	c.background.Go(func() {
		select {
		case c.events.token <- struct{}{}:
			defer func() { <-c.events.token }()
		case <-c.done:
			return
		}
		c.mu.Lock()
		wanted := len(r.subs) > 0 || c.events.topics[r.topic] != r
		if !wanted {
			delete(c.events.topics, r.topic)
			delete(c.events.callbacks, r.callback)
		}
		c.mu.Unlock()
		if !wanted {
			_ = c.call(context.Background(), connectDomainEventCallbackDeregisterAny, func(e *encoder) { e.int32(r.callback) }, nil)
		}
	})
}

// Lost counts the events that were dropped because C was full.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription, and tells libvirt. It may be called more than once.
func (s *Subscription) Close() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed {
		return
	}
	s.end()
	for _, r := range c.events.topics {
		before := len(r.subs)
		r.subs = slices.DeleteFunc(r.subs, func(other *Subscription) bool { return other == s })
		if before > 0 && len(r.subs) == 0 {
			c.drop(r)
		}
	}
}

// end closes C. Conn.mu is held.
func (s *Subscription) end() {
	if !s.closed {
		s.closed = true
		close(s.c)
	}
}

// deliver never waits. Conn.mu is held.
func (r *registration) deliver(e Event) {
	for _, s := range r.subs {
		select {
		case s.c <- e:
		default:
			s.lost.Add(1)
		}
	}
}

// event takes a message in. Those that we never ask for are passed over.
func (c *Conn) event(m message) error {
	kind, ok := kindOf(m.procedure)
	if !ok {
		return nil
	}
	id, e, err := decodeEvent(kind, m.payload)
	if len(m.payload) > maxEvent {
		err = fmt.Errorf("%d bytes", len(m.payload))
	}
	if err != nil {
		return fmt.Errorf("%w: event: %s: %w", ErrProtocol, m.header, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.events.callbacks[id]
	switch {
	case r != nil:
		r.deliver(e)
	case !c.events.expected: // of a subscription closed meanwhile
	case len(c.events.early) < maxEarly:
		c.events.early = append(c.events.early, early{id, e})
	default:
		c.events.missed++
	}
	return nil
}

// kindOf tells what REMOTE_PROC_DOMAIN_EVENT_CALLBACK_... carries.
func kindOf(procedure int32) (Kind, bool) {
	switch procedure {
	case 318: // ..._LIFECYCLE
		return Lifecycle, true
	case 333: // ..._DEVICE_REMOVED
		return DeviceRemoved, true
	case 354: // ..._DEVICE_ADDED
		return DeviceAdded, true
	case 367: // ..._DEVICE_REMOVAL_FAILED
		return DeviceRemovalFailed, true
	case 379: // ..._METADATA_CHANGE
		return MetadataChange, true
	}
	return 0, false
}

func decodeEvent(kind Kind, payload []byte) (callback int32, e Event, err error) {
	d := decoder{buf: payload}
	callback = d.int32()
	e = Event{Kind: kind, Domain: d.domain()}
	switch kind {
	case Lifecycle:
		e.Change, e.Detail = Change(d.int32()), d.int32()
	case MetadataChange:
		d.int32() // virDomainMetadataType
		e.URI = d.optionalString()
	default:
		e.Device = d.string()
	}
	return callback, e, d.end()
}

// endEvents closes the subscriptions' channels, once nobody delivers any more.
func (c *Conn) endEvents() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.events.topics {
		for _, s := range r.subs {
			s.end()
		}
	}
}
