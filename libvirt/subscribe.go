package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// Subscription receives events. Close it.
type Subscription struct {
	// C delivers the events in libvirt's order. It is closed when the subscription
	// or its connection ends.
	C <-chan Event

	conn   *Conn
	c      chan Event
	closed bool // under conn.mu
	lost   atomic.Uint64
}

// Lost returns how many events were dropped because C was full.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Err returns why the connection ended, and the subscription with it (see [Conn.Err]), and nil
// before that.
func (s *Subscription) Err() error { return s.conn.Err() }

// Close ends the subscription, and libvirt's registration if it was the last one. It may be called
// more than once.
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

// Subscribe delivers events of the given kinds of one domain, or of all if dom is nil, from now on,
// including those that libvirt sends before Subscribe returns. The channel buffers up to buffer
// events (at least 1). Further ones are dropped and counted ([Subscription.Lost]); a subscriber
// that has lost some must read the domain's state again. Each kind costs a call to libvirt.
func (c *Conn) Subscribe(ctx context.Context, dom *Domain, buffer int, kinds ...Kind) (*Subscription, error) {
	if len(kinds) == 0 {
		return nil, errors.New("subscribe: no kind of event is given")
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

// register adds one topic to s. If that needs a call to libvirt, the reply installs the
// registration and returns the token (install), even if ctx has ended by then.
func (c *Conn) register(ctx context.Context, s *Subscription, t topic, dom *Domain) error {
	p, _ := t.procedures()
	select {
	case c.events.token <- struct{}{}:
	case <-c.done:
		return fmt.Errorf("%s: %w", p.name, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s: libvirt has not answered an earlier registration: %w", p.name, context.Cause(ctx))
	}
	if c.join(s, t) {
		<-c.events.token
		return nil
	}
	asked := &call{
		procedure: p,
		text:      []string{t.name},
		registers: &registration{topic: t, subs: []*Subscription{s}},
	}
	if dom != nil {
		asked.text = append(asked.text, dom.Name)
	}
	_, err := ask(ctx, c, asked, func() (int32, error) { return t.register(c.lib, dom) })
	return err
}

// SubscribeMonitor is [Conn.Subscribe] for events of QEMU, which have the kind [Monitor]: those
// of the given names, or all if there are none. An event of more than 16 KiB counts as lost. It
// taints no domain, and is refused to a read-only connection.
func (c *Conn) SubscribeMonitor(ctx context.Context, dom *Domain, buffer int, names ...string) (*Subscription, error) {
	if len(names) == 0 {
		names = []string{""}
	}
	var topics []topic
	for _, name := range names {
		topics = append(topics, newTopic(Monitor, name, dom))
	}
	return c.subscribe(ctx, dom, buffer, topics)
}
