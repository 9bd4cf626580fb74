package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxMessage bounds one message of QEMU. The largest that QEMU 7.2 is known to
// send, query-qmp-schema's reply, has about 200 KiB.
const maxMessage = 64 << 20

type version struct{ Major, Minor, Micro int }

// outcome is QEMU's answer to a command.
type outcome struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`

	failure error // why there is none
}

// message is anything that QEMU sends: a greeting, a reply or an event.
type message struct {
	QMP *struct {
		Version struct {
			QEMU version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID *uint64 `json:"id"`
	outcome
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// read is the connection's one reader; it ends when the connection does.
func (c *Conn) read(r io.Reader) {
	defer close(c.idle)
	defer c.closeSubscriptions()
	c.fail(c.readAll(bufio.NewReaderSize(r, 64<<10), maxMessage))
}

// readAll deals out messages until something is wrong, and returns what.
func (c *Conn) readAll(r *bufio.Reader, limit int) error {
	greeted := false
	for {
		line, err := readLine(r, limit)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			continue
		}
		var m message // its raw fields are copies, line is r's
		if err := json.Unmarshal(line, &m); err != nil {
			return fmt.Errorf("%w: %q: %w", ErrProtocol, cut(line), err)
		}
		if (m.QMP == nil) != greeted {
			return fmt.Errorf("%w: greeting expected first and once, got %q", ErrProtocol, cut(line))
		}
		greeted = true
		if err := c.dispatch(&m); err != nil {
			return fmt.Errorf("%w: %q", err, cut(line))
		}
	}
}

// readLine returns the next line without its end. It is valid until the next call.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) && len(long) <= limit {
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	switch {
	case len(line) > limit:
		return nil, fmt.Errorf("%w: longer than %d bytes: %q", ErrProtocol, limit, cut(line))
	case err == nil:
		return bytes.TrimSpace(line), nil
	case len(line) > 0:
		return nil, fmt.Errorf("%w: QEMU hung up within a message: %w", ErrClosed, err)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: QEMU hung up (has it ended?)", ErrClosed)
	default:
		return nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
}

func (c *Conn) dispatch(m *message) error {
	switch {
	case m.QMP != nil:
		c.greeting <- m.QMP.Version.QEMU // has room, and comes once
		return nil
	case m.Event != "":
		c.publish(Event{Name: m.Event, Data: m.Data, Time: m.time()})
		return nil
	case m.Return == nil && m.Error == nil:
		return fmt.Errorf("%w: neither reply nor event", ErrProtocol)
	case m.ID == nil && m.Error != nil:
		return fmt.Errorf("%w: QEMU could not read a command: %s", ErrProtocol, m.Error.Desc)
	case m.ID == nil:
		return fmt.Errorf("%w: reply without an id", ErrProtocol)
	}
	c.mu.Lock()
	p := c.pending[*m.ID]
	c.mu.Unlock()
	if p != nil {
		c.forget(p)
		p.reply <- m.outcome
	}
	return nil
}

func (m *message) time() time.Time {
	if m.Timestamp.Seconds <= 0 { // -1 where the host's clock failed
		return time.Time{}
	}
	return time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
}

// cut shortens a message for an error's text.
func cut(line []byte) []byte {
	const most = 120
	if len(line) <= most {
		return line
	}
	return append(bytes.Clone(line[:most]), "..."...)
}
