package fakelibvirt

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"

	"vmnet/internal/kernel/fdpass"
	"vmnet/libvirt/domainxml"
)

// Programs (remote_protocol.x, qemu_protocol.x).
const (
	remoteProgram = 0x20008086
	qemuProgram   = 0x20008087
)

// Types of messages (virNetMessageType).
const (
	typeCall          = 0
	typeReply         = 1
	typeEvent         = 2
	typeCallWithFiles = 4
)

// headerSize is the size of a packet's length and header, in bytes.
const headerSize = 28

// header is virNetMessageHeader after the packet's length.
type header struct{ Program, Version, Procedure, Kind, Serial, Status uint32 }

// message is a call with its arguments. Its receiver closes the files.
type message struct {
	header
	args  decoder
	files []*os.File
}

// receive reads one message and its files, each of which comes with a byte of its own.
func receive(c *net.UnixConn) (m message, err error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(c, head); err != nil {
		return m, err
	}
	d := decoder{head}
	size := d.number()
	m.header = header{d.number(), d.number(), d.number(), d.number(), d.number(), d.number()}
	if size < headerSize || size > 1<<20 {
		return m, fmt.Errorf("a packet of %d bytes", size)
	}
	m.args.buf = make([]byte, size-headerSize)
	if _, err := io.ReadFull(c, m.args.buf); err != nil || m.Kind != typeCallWithFiles {
		return m, err
	}
	for range m.args.number() {
		_, files, err := fdpass.ReceiveOver(c, make([]byte, 1), 1)
		m.files = append(m.files, files...)
		if err != nil {
			fdpass.CloseAll(m.files)
			return m, err
		}
	}
	return m, nil
}

// packet returns a message in its wire form.
func packet(h header, payload encoder) []byte {
	var e encoder
	e.numbers(headerSize+uint32(len(payload)), h.Program, h.Version, h.Procedure, h.Kind, h.Serial, h.Status)
	return append(e, payload...)
}

// decoder reads XDR (RFC 4506). At the end of its text it returns zero values.
type decoder struct{ buf []byte }

func (d *decoder) take(n int) []byte {
	n = min(n, len(d.buf))
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) number() uint32 {
	if b := d.take(4); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) text() string {
	n := int(d.number())
	s := string(d.take(n))
	d.take(-n & 3)
	return s
}

// optional returns an optional string; empty if there is none.
func (d *decoder) optional() string {
	if d.number() == 0 {
		return ""
	}
	return d.text()
}

// domain skips a domain: there is one.
func (d *decoder) domain() {
	d.text()
	d.take(len(domainxml.UUID{}))
	d.number()
}

// encoder appends XDR to itself.
type encoder []byte

func (e *encoder) numbers(all ...uint32) {
	for _, n := range all {
		*e = binary.BigEndian.AppendUint32(*e, n)
	}
}

func (e *encoder) text(s string) {
	e.numbers(uint32(len(s)))
	*e = append(append(*e, s...), make([]byte, -len(s)&3)...)
}

func (e *encoder) domain(name string, uuid domainxml.UUID, id int32) {
	e.text(name)
	*e = append(*e, uuid[:]...)
	e.numbers(uint32(id))
}
