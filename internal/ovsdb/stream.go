package ovsdb

import (
	"bufio"
	"fmt"
	"io"
)

const (
	// maxMessage bounds a message of the server, in bytes: 10,000 ports with all that this package
	// reads of them need 8 MB.
	maxMessage = 32 << 20
	// maxDepth bounds its nesting. RFC 7047 needs eight levels, for a map within a set of results.
	maxDepth = 32
	// keptBuffer is how much room a stream keeps for the next message, in bytes.
	keptBuffer = 64 << 10
)

// stream splits what the server sends into JSON objects, which nothing needs to separate.
type stream struct {
	r     *bufio.Reader
	limit int // of a message, in bytes
	buf   []byte
}

func newStream(r io.Reader) stream {
	return stream{r: bufio.NewReaderSize(r, keptBuffer), limit: maxMessage}
}

// next returns the next object. It is valid until the next call. The JSON decoder checks that it is
// one.
func (s *stream) next() ([]byte, error) {
	if s.buf = s.buf[:0]; cap(s.buf) > keptBuffer {
		s.buf = nil
	}
	for o := (object{}); ; {
		if _, err := s.r.Peek(1); err != nil {
			return nil, err
		}
		data, _ := s.r.Peek(s.r.Buffered())
		begin, end, err := o.scan(data)
		if err != nil {
			return nil, err
		}
		if len(s.buf)+end-begin > s.limit {
			return nil, fmt.Errorf("%w: longer than %d bytes", ErrProtocol, s.limit)
		}
		s.buf = append(s.buf, data[begin:end]...)
		_, _ = s.r.Discard(end)
		if len(s.buf) > 0 && o.depth == 0 {
			return s.buf, nil
		}
	}
}

// object finds the end of a JSON object, which it gets piece by piece.
type object struct {
	depth    int
	inString bool
	escaped  bool // the next byte of the string is skipped
}

// scan returns which bytes of data belong to the object: all from begin, unless its end is there.
// White space precedes it.
func (o *object) scan(data []byte) (begin, end int, err error) {
	for i, b := range data {
		switch {
		case o.depth == 0 && (b == ' ' || b == '\t' || b == '\r' || b == '\n'):
			begin = i + 1
		case o.depth == 0 && b != '{':
			return 0, 0, fmt.Errorf("%w: it begins with %q", ErrProtocol, b)
		case o.escaped:
			o.escaped = false
		case o.inString:
			o.escaped, o.inString = b == '\\', b != '"'
		case b == '"':
			o.inString = true
		case b == '{', b == '[':
			if o.depth++; o.depth > maxDepth {
				return 0, 0, fmt.Errorf("%w: nested more than %d deep", ErrProtocol, maxDepth)
			}
		case b == '}', b == ']':
			if o.depth--; o.depth == 0 {
				return begin, i + 1, nil
			}
		}
	}
	return begin, len(data), nil
}
