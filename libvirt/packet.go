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
	return fmt.Sprintf("program %#x version %d procedure %d type %d serial %d status %d", h.program, h.version, h.procedure, h.kind, h.serial, h.status)
}

// message is one that was received. Its files are its receiver's to close.
type message struct {
	header
	payload []byte
	files   []*os.File
}

// encode makes a packet. The files themselves follow it, one byte each.
func encode(h header, files int, args func(*encoder)) ([]byte, error) {
	e := encoder{buf: make([]byte, lengthSize, 256)}
	e.uint32(h.program)
	e.uint32(h.version)
	e.int32(h.procedure)
	e.uint32(uint32(h.kind))
	e.uint32(h.serial)
	e.uint32(uint32(h.status))
	if files > 0 {
		e.uint32(uint32(files))
	}
	if args != nil {
		args(&e)
	}
	switch {
	case e.err != nil:
		return nil, e.err
	case files > maxFiles:
		return nil, fmt.Errorf("%d files, libvirt takes %d at a time", files, maxFiles)
	case len(e.buf) > maxPacket:
		return nil, fmt.Errorf("%d bytes, libvirt takes %d at a time", len(e.buf), maxPacket)
	}
	binary.BigEndian.PutUint32(e.buf, uint32(len(e.buf)))
	return e.buf, nil
}

// source is what packets come from. A file comes with a byte of its own, after the packet
// that announces it (virNetSocketSendFD in src/rpc/virnetsocket.c).
type source interface {
	io.Reader
	readFile() (*os.File, error)
}

// readMessage reads one packet and its files. io.EOF is an end between two packets.
// A packet that cannot be one Is [ErrProtocol].
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
	d := decoder{buf: body}
	m := message{header: header{d.uint32(), d.uint32(), d.int32(), messageType(d.uint32()), d.uint32(), status(d.uint32())}}
	files := 0
	if m.kind == typeCallWithFiles || m.kind == typeReplyWithFiles {
		files = d.count(maxFiles, 0)
	}
	if d.err != nil {
		return message{}, fmt.Errorf("%w: %s: %w", ErrProtocol, m.header, d.err)
	}
	m.payload = d.buf
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

// readBody reads n bytes, and allocates as they come: n is only what the other side says.
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
