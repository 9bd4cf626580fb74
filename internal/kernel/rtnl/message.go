package rtnl

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// message is one of the kernel's messages about an address, a route, a rule or a neighbor: a
// structure of that size, and attributes. It is kept as bytes, so that nothing is lost that this
// package does not know.
type message struct {
	b    []byte
	size int
}

// Sizes of the structures: struct ifaddrmsg, rtmsg, fib_rule_hdr, ndmsg.
const (
	sizeofAddr     = unix.SizeofIfAddrmsg
	sizeofRoute    = unix.SizeofRtMsg
	sizeofRule     = 12
	sizeofNeighbor = sizeofNdmsg
)

// attr returns the value of an attribute; nil if there is none.
func (m message) attr(kind uint16) (value []byte) {
	each(m.b[m.size:], func(k uint16, v []byte) {
		if k == kind && value == nil {
			value = v
		}
	})
	return value
}

// number returns the value of an attribute of 32 bits; 0 if there is none.
func (m message) number(kind uint16) int { return int(u32(m.attr(kind))) }

// addr returns the value of an attribute that is an IP address.
func (m message) addr(kind uint16) netip.Addr {
	a, _ := netip.AddrFromSlice(m.attr(kind))
	return a
}

// rewritten returns a copy of m whose attributes are what change returns for them; those for which
// it returns nil are left out.
func (m message) rewritten(change func(kind uint16, v []byte) []byte) message {
	c := message{slices.Clone(m.b[:m.size]), m.size}
	walk(m.b[m.size:], func(kind uint16, v []byte) {
		if v := change(kind&^unix.NLA_F_NESTED, v); v != nil {
			c.b = appendAttr(c.b, kind, v)
		}
	})
	return c
}

// walk is each with the flags of the attributes' types.
func walk(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func appendAttr(b []byte, kind uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(v)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, v...)
	return append(b, make([]byte, -len(v)&3)...)
}

// with returns m with one more attribute.
func (m message) with(kind uint16, v []byte) message {
	return message{appendAttr(slices.Clone(m.b), kind, v), m.size}
}

// without returns a function for rewritten, which leaves out attributes.
func without(kinds ...uint16) func(uint16, []byte) []byte {
	return func(k uint16, v []byte) []byte {
		if slices.Contains(kinds, k) {
			return nil
		}
		return v
	}
}

func name(v []byte) string { return unix.ByteSliceToString(v) }

func zeroTerminated(s string) []byte { return append([]byte(s), 0) }

// Len and Serialize make a message the content of a request.
func (m message) Len() int          { return len(m.b) }
func (m message) Serialize() []byte { return bytes.Clone(m.b) }

func (m message) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, unix.NLM_F_ACK|flags)
	req.AddData(m)
	return req
}

// messages reads a dump whose answers have a structure of that size.
func (c *Conn) messages(ask, answer, size int, header nl.NetlinkRequestData) ([]message, error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(ask, unix.NLM_F_DUMP)
		req.AddData(header)
		return req
	}, uint16(answer))
	var found []message
	for _, b := range msgs {
		if len(b) >= size {
			found = append(found, message{b, size})
		}
	}
	return found, err
}
