package qmp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Bounds of what QEMU sends, in bytes: the guest may have taken over its process.
const (
	// maxMessage bounds one message. The replies that this package needs have a few kilobytes.
	maxMessage = 1 << 20
	// maxSchema bounds a message while query-qmp-schema is unanswered. That reply has about
	// 200 KiB in QEMU 7.2, and five times that on a -qmp-pretty monitor.
	maxSchema = 8 << 20
	// maxEvent bounds an event, of which many may wait in a [Subscription].
	maxEvent = 64 << 10
)

// querySchema is the one command whose reply may be long (qapi/introspect.json).
const querySchema = "query-qmp-schema"

type version struct{ Major, Minor, Micro int }

// outcome is QEMU's answer to a command.
type outcome struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`

	failure error // why there is no reply
}

// message is anything that QEMU sends: a greeting, a reply or an event.
type message struct {
	QMP *struct {
		Version struct {
			QEMU version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID json.RawMessage `json:"id"`
	outcome
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// read is the connection's only reader; it ends with the connection.
func (c *Conn) read(r io.Reader) {
	defer close(c.idle)
	defer c.closeSubscriptions()
	c.fail(c.readAll(bufio.NewReaderSize(newThrottle(r, c.done), 64<<10)))
}

// limit returns how long the next message may be, in bytes.
func (c *Conn) limit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := maxMessage
	for _, p := range c.pending {
		limit = max(limit, limitOf(p))
	}
	return limit
}

// limitOf returns how long the reply to a command may be, in bytes.
func limitOf(p *pending) int {
	if p.command == querySchema {
		return maxSchema
	}
	return maxMessage
}

// readAll distributes messages until an error, which it returns.
func (c *Conn) readAll(r *bufio.Reader) error {
	stream := stream{r: r, limit: c.limit}
	var shake handshake
	for {
		text, err := stream.next()
		if err != nil {
			return shake.ended(err)
		}
		var m message // its raw fields are copies, text is stream's
		if err := json.Unmarshal(text, &m); err != nil {
			return fmt.Errorf("%w: %q: %w", ErrProtocol, cut(text), err)
		}
		switch pass, err := shake.passOver(&m, text, c.listed(m.id()) != nil); {
		case err != nil:
			return err
		case pass:
			continue
		}
		if m.Event != "" && len(text) > maxEvent {
			return fmt.Errorf("%w: event longer than %d bytes: %q", ErrProtocol, maxEvent, cut(text))
		}
		if err := c.dispatch(&m); err != nil {
			return fmt.Errorf("%w: %q", err, cut(text))
		}
	}
}

func (c *Conn) dispatch(m *message) error {
	id := m.id()
	switch {
	case m.QMP != nil:
		c.greeting <- m.QMP.Version.QEMU // has room, and comes once
		return nil
	case m.Event != "":
		c.publish(Event{Name: m.Event, Data: m.Data, Time: m.time()})
		return nil
	case m.Return == nil && m.Error == nil:
		return fmt.Errorf("%w: neither reply nor event", ErrProtocol)
	case id == nil && m.Error != nil:
		return fmt.Errorf("%w: QEMU could not read a command: %s", ErrProtocol, m.Error.Desc)
	case id == nil:
		return fmt.Errorf("%w: reply without an id of this client", ErrProtocol)
	}
	if p := c.listed(id); p != nil {
		c.forget(p)
		p.reply <- m.outcome
	}
	return nil
}

// listed returns the command that awaits the reply with that id, or nil.
func (c *Conn) listed(id *uint64) *pending {
	if id == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[*id]
}

// id returns the id of a command of this client, or nil.
func (m *message) id() (id *uint64) {
	if json.Unmarshal(m.ID, &id) != nil {
		return nil
	}
	return id
}

func (m *message) time() time.Time {
	if m.Timestamp.Seconds <= 0 { // -1 if the host's clock failed
		return time.Time{}
	}
	return time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
}
