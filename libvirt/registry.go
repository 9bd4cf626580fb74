package libvirt

import (
	"context"
	"fmt"
	"slices"

	golibvirt "github.com/digitalocean/go-libvirt"

	"vmnet/libvirt/domainxml"
)

var (
	connectDomainEventCallbackRegisterAny = procedure{
		remoteProgram, 316, "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY", aNumber,
	}
	connectDomainEventCallbackDeregisterAny = procedure{
		remoteProgram, 317, "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY", nil,
	}
	connectDomainMonitorEventRegister = procedure{
		qemuProgram, 4, "CONNECT_DOMAIN_MONITOR_EVENT_REGISTER", aNumber,
	}
	connectDomainMonitorEventDeregister = procedure{
		qemuProgram, 5, "CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER", nil,
	}
)

// topic is a set of events for which a client can register. libvirt accepts each topic once per
// connection, so subscriptions to the same topic share a registration.
type topic struct {
	kind Kind
	name string // for Monitor; empty is all
	all  bool   // domains
	dom  domainxml.UUID
}

func newTopic(kind Kind, name string, dom *Domain) topic {
	if dom == nil {
		return topic{kind: kind, name: name, all: true}
	}
	return topic{kind: kind, name: name, dom: dom.UUID}
}

// procedures returns the procedures that begin and end a registration for the topic.
func (t topic) procedures() (register, deregister procedure) {
	if t.kind == Monitor {
		return connectDomainMonitorEventRegister, connectDomainMonitorEventDeregister
	}
	return connectDomainEventCallbackRegisterAny, connectDomainEventCallbackDeregisterAny
}

// register begins a registration. dom is the topic's, nil for all.
func (t topic) register(lib *golibvirt.Libvirt, dom *Domain) (number int32, err error) {
	var of golibvirt.OptDomain
	if dom != nil {
		of = golibvirt.OptDomain{dom.to()}
	}
	if t.kind != Monitor {
		return lib.ConnectDomainEventCallbackRegisterAny(int32(t.kind), of)
	}
	var name golibvirt.OptString
	if t.name != "" {
		name = golibvirt.OptString{t.name}
	}
	const exactly = 0 // the name is not a pattern
	return lib.QEMUConnectDomainMonitorEventRegister(of, name, exactly)
}

// deregister ends a registration.
func (t topic) deregister(lib *golibvirt.Libvirt, number int32) error {
	if t.kind == Monitor {
		return lib.QEMUConnectDomainMonitorEventDeregister(number)
	}
	return lib.ConnectDomainEventCallbackDeregisterAny(number)
}

// callback is libvirt's number of a registration with a program.
type callback struct {
	program uint32
	number  int32
}

// registration is a topic whose events libvirt sends.
type registration struct {
	topic
	callback callback
	subs     []*Subscription
}

// registry is a connection's registrations. Conn.mu guards all but token.
type registry struct {
	token     chan struct{} // held until libvirt has answered a registration or its end
	topics    map[topic]*registration
	callbacks map[callback]*registration
	expected  bool // the reply with a callback number has not arrived
	early     []early
	missed    uint64 // early events for which there was no room
}

func newRegistry() registry {
	return registry{
		token:     make(chan struct{}, 1),
		topics:    map[topic]*registration{},
		callbacks: map[callback]*registration{},
	}
}

// early is an event with an unknown callback number: libvirt may send it before its reply to the
// registration.
type early struct {
	callback callback
	event    Event
}

const (
	maxEarly = 1024     // events kept for the registration in progress
	maxEvent = 16 << 10 // bytes; names of domains and devices are shorter: files have them
)

// join adds s to an existing registration for t, and reports whether there is one.
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

// settle ends the wait for the reply to a registration: it has arrived, or never will. Conn.mu is
// held.
func (r *registry) settle() {
	r.expected, r.early, r.missed = false, nil, 0
	<-r.token
}

// install handles the reply to a registration. Conn.mu is held.
func (c *Conn) install(r *registration, m message) {
	defer c.events.settle()
	d := decoder{buf: m.payload}
	r.callback = callback{m.program, d.int32()}
	if m.status != statusOK || d.end() != nil {
		return
	}
	c.events.topics[r.topic], c.events.callbacks[r.callback] = r, r
	r.subs = slices.DeleteFunc(r.subs, func(s *Subscription) bool { return s.closed })
	if len(r.subs) == 0 { // the subscriber has left in the meantime
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

// drop ends the registration in the background, unless it has a subscriber again by then. Conn.mu
// is held.
func (c *Conn) drop(r *registration) {
	if c.err != nil {
		return
	}
	c.dropping++
	c.work.Go(func() {
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
			_ = c.call(context.Background(), deregister, func() error {
				return r.deregister(c.lib, r.callback.number)
			})
		}
	})
}

// lose counts an event that cannot be delivered. Conn.mu is held.
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

// event handles an event message. It ignores events of kinds to which no client can subscribe.
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
	case r != nil && tooLong: // its strings may come from outside, such as the name of a VNC client
		r.lose()
	case r != nil:
		r.deliver(e)
	case !c.events.expected: // of a subscription that has been closed
	case len(c.events.early) < maxEarly && !tooLong:
		c.events.early = append(c.events.early, early{id, e})
	default:
		c.events.missed++
	}
	return nil
}

// endEvents closes the channels of all subscriptions after the last delivery.
func (c *Conn) endEvents() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.events.topics {
		for _, s := range r.subs {
			s.end()
		}
	}
}
