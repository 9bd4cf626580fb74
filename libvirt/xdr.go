package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"vmnet/libvirt/domainxml"
)

// Bounds of remote_protocol.x and virnetprotocol.x.
const (
	maxString = 4 << 20  // REMOTE_STRING_MAX, bytes
	maxPacket = 32 << 20 // VIR_NET_MESSAGE_MAX, bytes without the length word
	maxFiles  = 32       // VIR_NET_MESSAGE_NUM_FDS_MAX
	maxList   = 16384    // REMOTE_DOMAIN_LIST_MAX, elements
	maxAuth   = 20       // REMOTE_AUTH_TYPE_LIST_MAX, elements
)

// encoder appends XDR (RFC 4506) to buf. After an error it does nothing more.
type encoder struct {
	buf []byte
	err error
}

func (e *encoder) uint32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }
func (e *encoder) int32(v int32)   { e.uint32(uint32(v)) }

// string refuses what C would cut: a name that ends at a NUL is another domain's.
func (e *encoder) string(s string) {
	switch {
	case e.err != nil:
		return
	case len(s) > maxString:
		e.err = fmt.Errorf("string of %d bytes, libvirt takes %d", len(s), maxString)
		return
	case strings.IndexByte(s, 0) >= 0:
		e.err = fmt.Errorf("string with a NUL byte: %.120q", s)
		return
	}
	e.uint32(uint32(len(s)))
	e.buf = append(e.buf, s...)
	e.buf = append(e.buf, make([]byte, padding(len(s)))...)
}

func (e *encoder) domain(d Domain) {
	e.string(d.Name)
	e.buf = append(e.buf, d.UUID[:]...)
	e.int32(d.ID)
}

// present announces whether an optional value follows.
func (e *encoder) present(yes bool) {
	if yes {
		e.uint32(1)
	} else {
		e.uint32(0)
	}
}

// decoder takes XDR off buf. After an error everything it returns is zero.
type decoder struct {
	buf []byte
	err error
}

var errShort = errors.New("ends too early")

// take is the next n bytes, which stay buf's.
func (d *decoder) take(n int) []byte {
	if d.err == nil && n > len(d.buf) {
		d.err = errShort
	}
	if d.err != nil {
		return nil
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) int32() int32 { return int32(d.uint32()) }

// hyper is XDR's word for 64 bits.
func (d *decoder) hyper() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) present() bool {
	v := d.uint32()
	if v > 1 && d.err == nil {
		d.err = fmt.Errorf("%d is no truth value", v)
	}
	return d.err == nil && v == 1
}

func (d *decoder) string() string {
	n := d.uint32()
	if n > maxString && d.err == nil {
		d.err = fmt.Errorf("string of %d bytes, at most %d are allowed", n, maxString)
	}
	s := string(d.take(int(n)))
	d.take(padding(len(s)))
	return s
}

func (d *decoder) optionalString() string {
	if d.present() {
		return d.string()
	}
	return ""
}

// count is an array's length. Elements have at least size bytes, so that an array
// that cannot be there is refused before it is allocated.
func (d *decoder) count(limit, size int) int {
	n := d.uint32()
	switch {
	case d.err != nil:
		return 0
	case n > uint32(limit):
		d.err = fmt.Errorf("array of %d elements, at most %d are allowed", n, limit)
		return 0
	case int(n)*size > len(d.buf):
		d.err = errShort
		return 0
	}
	return int(n)
}

func (d *decoder) uuid() (u domainxml.UUID) {
	copy(u[:], d.take(len(u)))
	return u
}

func (d *decoder) domain() Domain {
	return Domain{Name: d.string(), UUID: d.uuid(), ID: d.int32()}
}

// end is the first error, or that something is left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.buf) > 0 {
		return fmt.Errorf("%d bytes too many", len(d.buf))
	}
	return d.err
}

// padding is how many bytes are missing to a multiple of four.
func padding(n int) int { return -n & 3 }
