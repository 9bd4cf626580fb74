package libvirt

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"vmnet/internal/kernel/fdpass"
)

// Programs, which all have version 1.
const (
	remoteProgram    = 0x20008086
	qemuProgram      = 0x20008087
	keepaliveProgram = 0x6b656570

	programVersion = 1
)

// messageType is virNetMessageType.
type messageType uint32

const (
	typeCall           messageType = 0
	typeReply          messageType = 1
	typeMessage        messageType = 2 // an event, a ping
	typeCallWithFiles  messageType = 4
	typeReplyWithFiles messageType = 5
)

// status is virNetMessageStatus.
type status uint32

const (
	statusOK    status = 0
	statusError status = 1
)

const (
	lengthSize = 4  // VIR_NET_MESSAGE_LEN_MAX; the length counts itself
	headerSize = 24 // VIR_NET_MESSAGE_HEADER_MAX
)

// header is virNetMessageHeader.
type header struct {
	program   uint32
	version   uint32
	procedure int32
	kind      messageType
	serial    uint32
	status    status
}

func (h header) String() string {
	return fmt.Sprintf("program %#x version %d procedure %d type %d serial %d status %d",
		h.program, h.version, h.procedure, h.kind, h.serial, h.status)
}

// message is a received message. Its receiver closes the files.
type message struct {
	header
	payload []byte
	files   []*os.File
}

// decode reads a reply with result, which is nil if the procedure returns nothing. If the reply is
// an error, decode returns an [*Error].
func (m *message) decode(name string, result func(*decoder)) error {
	if m.status == statusError {
		return decodeError(name, m.payload)
	}
	d := decoder{buf: m.payload}
	if result != nil {
		result(&d)
	}
	if err := d.end(); err != nil {
		return fmt.Errorf("%s: %w: reply: %w", name, ErrProtocol, err)
	}
	return nil
}

// packet returns the message in its wire form, with that payload. Files follow it, one byte each.
func (h header) packet(payload []byte) []byte {
	b := make([]byte, 0, lengthSize+headerSize+len(payload))
	for _, v := range []uint32{
		uint32(cap(b)), h.program, h.version,
		uint32(h.procedure), uint32(h.kind), h.serial, uint32(h.status),
	} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, payload...)
}

// source delivers packets. Each file comes with a byte of its own, after the packet that announces
// it (virNetSocketSendFD in src/rpc/virnetsocket.c).
type source interface {
	io.Reader
	readFile() (*os.File, error)
}

// readMessage reads one packet and its files. It returns io.EOF at an end between two packets. The
// error for a malformed packet matches [ErrProtocol].
func readMessage(r source) (message, error) {
	var length [lengthSize]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return message{}, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < lengthSize+headerSize || n > lengthSize+maxPacket {
		return message{}, fmt.Errorf("%w: packet of %d bytes", ErrProtocol, n)
	}
	body, err := readBody(r, int(n)-lengthSize)
	if err != nil {
		return message{}, err
	}
	m, files, err := parsePacket(body)
	if err != nil {
		return message{}, err
	}
	for range files {
		f, err := r.readFile()
		if err != nil {
			fdpass.CloseAll(m.files)
			return message{}, err
		}
		m.files = append(m.files, f)
	}
	return m, nil
}

// readBody reads n bytes, and allocates memory as they arrive: n is only a claim of the peer.
func readBody(r io.Reader, n int) ([]byte, error) {
	const chunk = 64 << 10
	var body []byte
	for len(body) < n {
		had := len(body)
		body = append(body, make([]byte, min(n-had, max(had, chunk)))...)
		if _, err := io.ReadFull(r, body[had:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return body, nil
}

// parsePacket parses a packet after its length, and returns how many files follow it.
func parsePacket(body []byte) (m message, files int, err error) {
	d := decoder{buf: body}
	m.header = header{
		d.uint32(), d.uint32(), d.int32(),
		messageType(d.uint32()), d.uint32(), status(d.uint32()),
	}
	if m.kind == typeCallWithFiles || m.kind == typeReplyWithFiles {
		files = d.count(maxFiles, 0)
	}
	if d.err != nil {
		return message{}, 0, fmt.Errorf("%w: %s: %w", ErrProtocol, m.header, d.err)
	}
	m.payload = d.buf
	return m, files, nil
}
