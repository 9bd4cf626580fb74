package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"vmnet/libvirt/domainxml"
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

	Monitor Kind = -1 // an event of QEMU's own; see Conn.SubscribeMonitor
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

	Name    string    // of Monitor: QAPI's, "DEVICE_DELETED"
	Details string    // of Monitor: a JSON object; empty where there are none
	Time    time.Time // of Monitor: by QEMU's clock
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
	name string // of Monitor; empty is all
	all  bool   // domains
	dom  domainxml.UUID
}

func newTopic(kind Kind, name string, dom *Domain) topic {
	if dom == nil {
		return topic{kind: kind, name: name, all: true}
	}
	return topic{kind: kind, name: name, dom: dom.UUID}
}

// procedures begin and end a registration for the topic.
func (t topic) procedures() (register, deregister procedure) {
	if t.kind == Monitor {
		return connectDomainMonitorEventRegister, connectDomainMonitorEventDeregister
	}
	return connectDomainEventCallbackRegisterAny, connectDomainEventCallbackDeregisterAny
}

// callback is libvirt's number for a registration with a program.
type callback struct {
	program uint32
	number  int32
}

// registration is a topic that libvirt tells us of.
type registration struct {
	topic
	callback callback
	subs     []*Subscription
}

// registry is a connection's registrations. Conn.mu guards all but token.
type registry struct {
	token     chan struct{} // taken while libvirt has not answered a registration, or its end
	topics    map[topic]*registration
	callbacks map[callback]*registration
	expected  bool // the reply with a callback number is due
	early     []early
	missed    uint64 // early ones for which there was no room
}

func newRegistry() registry {
	return registry{token: make(chan struct{}, 1), topics: map[topic]*registration{}, callbacks: map[callback]*registration{}}
}

// early is an event whose number we have not been told yet: libvirt may send it before its reply.
type early struct {
	callback callback
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
	var topics []topic
	for _, kind := range kinds {
		topics = append(topics, newTopic(kind, "", dom))
	}
	return c.subscribe(ctx, dom, buffer, topics)
}

func (c *Conn) subscribe(ctx context.Context, dom *Domain, buffer int, topics []topic) (*Subscription, error) {
	ch := make(chan Event, max(buffer, 1))
	s := &Subscription{C: ch, conn: c, c: ch}
	for _, t := range topics {
		if err := c.register(ctx, s, t, dom); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// register adds one topic to s. Where libvirt must be asked, the reader takes the callback number
// out of the reply and gives the token back (install), also when ctx has ended meanwhile.
func (c *Conn) register(ctx context.Context, s *Subscription, t topic, dom *Domain) error {
	p, _ := t.procedures()
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
		if t.kind != Monitor {
			e.int32(int32(t.kind))
		}
		if e.present(dom != nil); dom != nil {
			e.domain(*dom)
		}
		if t.kind == Monitor {
			e.monitorEvent(t.name)
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
	r.callback = callback{m.program, d.int32()}
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
	c.dropping++
	c.background.Go(func() {
		defer func() {
			c.mu.Lock()
			c.dropping--
			c.mu.Unlock()
		}()
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
			_, deregister := r.procedures()
			_ = c.call(context.Background(), deregister, func(e *encoder) { e.int32(r.callback.number) }, nil)
		}
	})
}

// Lost counts the events that were dropped because C was full.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Err says why the connection ended, and with it the subscription: see [Conn.Err]. It is nil before.
func (s *Subscription) Err() error { return s.conn.Err() }

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

// lose counts an event that could not be kept. Conn.mu is held.
func (r *registration) lose() {
	for _, s := range r.subs {
		s.lost.Add(1)
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
	kind, ok := kindOf(m.program, m.procedure)
	if !ok {
		return nil
	}
	number, e, err := decodeEvent(kind, m.payload)
	tooLong := len(m.payload) > maxEvent
	if tooLong && kind != Monitor {
		err = fmt.Errorf("%d bytes", len(m.payload))
	}
	if err != nil {
		return fmt.Errorf("%w: event: %s: %w", ErrProtocol, m.header, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := callback{m.program, number}
	r := c.events.callbacks[id]
	switch {
	case r != nil && tooLong: // strings in it may be a stranger's, a VNC client's name
		r.lose()
	case r != nil:
		r.deliver(e)
	case !c.events.expected: // of a subscription closed meanwhile
	case len(c.events.early) < maxEarly && !tooLong:
		c.events.early = append(c.events.early, early{id, e})
	default:
		c.events.missed++
	}
	return nil
}

// kindOf tells what REMOTE_PROC_DOMAIN_EVENT_CALLBACK_... or QEMU_PROC_DOMAIN_MONITOR_EVENT carries.
func kindOf(program uint32, procedure int32) (Kind, bool) {
	if program == qemuProgram {
		return Monitor, procedure == domainMonitorEvent
	}
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
	case Monitor:
		d.monitorEvent(&e)
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
