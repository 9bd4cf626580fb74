package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"

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

// decoder reads XDR (RFC 4506) from buf. After an error it returns zero values.
type decoder struct {
	buf []byte
	err error
}

var errShort = errors.New("ends too early")

// take returns the next n bytes, which alias buf.
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

// hyper reads 64 bits, a hyper integer of XDR.
func (d *decoder) hyper() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) present() bool {
	v := d.uint32()
	if v > 1 && d.err == nil {
		d.err = fmt.Errorf("%d is not a boolean", v)
	}
	return d.err == nil && v == 1
}

func (d *decoder) string() string { return string(d.bytes()) }

// bytes reads a string, which aliases buf.
func (d *decoder) bytes() []byte {
	n := d.uint32()
	if n > maxString && d.err == nil {
		d.err = fmt.Errorf("string of %d bytes, at most %d are allowed", n, maxString)
	}
	b := d.take(int(n))
	d.take(padding(len(b)))
	return b
}

func (d *decoder) optionalString() string {
	if d.present() {
		return d.string()
	}
	return ""
}

// count reads an array's length. Its elements have at least size bytes, so an array that is longer
// than the message is refused before it is allocated.
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

// minDomain is the size of a domain whose name is empty, in bytes.
const minDomain = 24

func (d *decoder) domain() Domain {
	return Domain{Name: d.string(), UUID: d.uuid(), ID: d.int32()}
}

// end returns the first error, or an error if bytes are left.
func (d *decoder) end() error {
	if d.err == nil && len(d.buf) > 0 {
		return fmt.Errorf("%d bytes are left over", len(d.buf))
	}
	return d.err
}

// padding returns the number of bytes that are missing to a multiple of four.
func padding(n int) int { return -n & 3 }
