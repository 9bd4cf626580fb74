package qmp

import (
	"encoding/json"
	"slices"
	"sync/atomic"
	"time"
)

// Event is a message that QEMU sends unasked.
type Event struct {
	Name string          // QAPI's: "DEVICE_DELETED"
	Data json.RawMessage // the event's own members; nil if it has none
	Time time.Time       // by QEMU's clock; zero if QEMU sent none
}

// A Subscription receives events. Close it.
type Subscription struct {
	// C delivers the events. It is closed when the subscription or its
	// connection ends.
	C <-chan Event

	conn  *Conn
	c     chan Event
	names []string
	lost  atomic.Uint64
}

// Subscribe delivers the events of the given names, or all events if no name is given, from now on.
// At most buffer events (at least 1) wait to be received; further ones are dropped and counted, and
// nothing waits for them.
func (c *Conn) Subscribe(buffer int, names ...string) *Subscription {
	ch := make(chan Event, max(buffer, 1))
	s := &Subscription{C: ch, conn: c, c: ch, names: names}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subs == nil {
		close(ch)
		return s
	}
	c.subs[s] = struct{}{}
	return s
}

// Lost returns how many events were dropped because C was full.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if _, open := s.conn.subs[s]; open {
		delete(s.conn.subs, s)
		close(s.c)
	}
}

func (c *Conn) publish(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		if len(s.names) > 0 && !slices.Contains(s.names, e.Name) {
			continue
		}
		select {
		case s.c <- e:
		default:
			s.lost.Add(1)
		}
	}
}

func (c *Conn) closeSubscriptions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		close(s.c)
	}
	c.subs = nil
}
