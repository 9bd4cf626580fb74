package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
)

// stream splits what QEMU sends into JSON objects, whatever their white space: a message may take
// many lines (-qmp-pretty), and several may share one.
type stream struct {
	r     *bufio.Reader
	limit func() int // bytes of the next message
	buf   []byte     // the message so far
}

// keptBuffer is how much room a stream keeps for the next message.
const keptBuffer = 64 << 10

// next returns the next object. It is valid until the next call.
func (s *stream) next() ([]byte, error) {
	if s.buf = s.buf[:0]; cap(s.buf) > keptBuffer {
		s.buf = nil
	}
	if err := s.skipSpace(); err != nil {
		return nil, err
	}
	limit := s.limit()
	for o := (object{}); ; {
		data, err := s.buffered()
		if err != nil {
			return nil, s.hungUp(err)
		}
		n, whole := o.scan(data)
		if len(s.buf)+n > limit {
			return nil, fmt.Errorf("%w: longer than %d bytes: %q", ErrProtocol, limit, cut(append(s.buf, data...)))
		}
		s.buf = append(s.buf, data[:n]...)
		_, _ = s.r.Discard(n)
		if whole {
			return s.buf, nil
		}
	}
}

// skipSpace discards what precedes the next object.
func (s *stream) skipSpace() error {
	for {
		data, err := s.buffered()
		if err != nil {
			return s.hungUp(err)
		}
		rest := bytes.TrimLeft(data, " \t\r\n")
		_, _ = s.r.Discard(len(data) - len(rest))
		switch {
		case len(rest) == 0:
		case rest[0] != '{':
			return fmt.Errorf("%w: %q", ErrProtocol, cut(rest))
		default:
			return nil
		}
	}
}

// buffered returns what has arrived and was not discarded, at least one byte.
func (s *stream) buffered() ([]byte, error) {
	if _, err := s.r.Peek(1); err != nil {
		return nil, err
	}
	return s.r.Peek(s.r.Buffered())
}

func (s *stream) hungUp(err error) error {
	switch {
	case len(s.buf) > 0:
		return fmt.Errorf("%w: QEMU hung up within a message: %w", ErrClosed, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: QEMU hung up (has it ended?)", ErrClosed)
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// object finds the end of a JSON object, which it gets piece by piece. The JSON decoder checks that
// it is one.
type object struct {
	depth    int
	inString bool
	escaped  bool // the next byte of the string is skipped
}

// scan returns how many bytes belong to the object, and whether its end is among them.
func (o *object) scan(data []byte) (n int, whole bool) {
	for i, b := range data {
		switch {
		case o.escaped:
			o.escaped = false
		case o.inString:
			o.escaped = b == '\\'
			o.inString = b != '"'
		case b == '"':
			o.inString = true
		case b == '{', b == '[':
			o.depth++
		case b == '}', b == ']':
			if o.depth--; o.depth == 0 {
				return i + 1, true
			}
		}
	}
	return len(data), false
}

// How many bytes are read from a monitor at once, and in each second after those. QEMU itself sends
// less than a thousand bytes for most commands.
const (
	throttleBurst = 4 << 20
	throttleRate  = 1 << 20
)

// throttle reads from a monitor no faster than that, so a monitor that floods its client costs the
// client little time.
type throttle struct {
	r    io.Reader
	done <-chan struct{} // ends a pause
	left int             // bytes that may be read now
	at   time.Time       // when left was that
}

func newThrottle(r io.Reader, done <-chan struct{}) *throttle {
	return &throttle{r: r, done: done, left: throttleBurst, at: time.Now()}
}

func (t *throttle) Read(p []byte) (int, error) {
	for t.refill(); t.left < len(p); t.refill() {
		need := time.Duration(len(p)-t.left) * time.Second / throttleRate
		select {
		case <-time.After(need):
		case <-t.done: // the connection is closed by then
			return t.r.Read(p)
		}
	}
	n, err := t.r.Read(p)
	t.left -= n
	return n, err
}

func (t *throttle) refill() {
	now := time.Now()
	if more := min(now.Sub(t.at), time.Minute).Seconds() * throttleRate; more >= 1 {
		t.left, t.at = min(throttleBurst, t.left+int(more)), now
	}
}

// cut shortens a message for an error's text.
func cut(text []byte) []byte {
	const most = 120
	if len(text) <= most {
		return text
	}
	return append(bytes.Clone(text[:most]), "..."...)
}
