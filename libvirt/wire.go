package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// lastWords bounds the time to read what a daemon said before it hung up.
const lastWords = time.Second

const (
	keepalivePing = 1
	keepalivePong = 2
)

// wire is go-libvirt's connection to the daemon. What go-libvirt sends goes out as whole packets,
// with the files of the call. What comes in is read here, and only replies to calls are passed
// on, one packet of the right form at a time: go-libvirt trusts every length, knows no files, and
// has no place for events that come before their registration has been answered.
type wire struct {
	*net.UnixConn
	conn      *Conn
	handshake chan []byte   // answers to go-libvirt's own; closed when that is over
	idle      chan struct{} // closed when nothing is read any more

	// For the reader, which is one goroutine.
	in    []byte // what go-libvirt is to read next
	ended bool

	out     []byte        // the part of a packet that go-libvirt has written
	shaken  bool          // handshake is closed
	writing sync.Mutex    // held for a packet with its files
	pings   chan struct{} // unanswered ones, of which one stands for all
}

func newWire(uc *net.UnixConn, c *Conn) *wire {
	return &wire{
		UnixConn:  uc,
		conn:      c,
		handshake: make(chan []byte),
		idle:      make(chan struct{}),
		pings:     make(chan struct{}, 1),
	}
}

// Dial makes a wire the dialer that go-libvirt gets its connection from.
func (w *wire) Dial() (net.Conn, error) { return w, nil }

// connected ends the handshake. From then on the daemon is at the other end.
func (w *wire) connected() {
	w.shaken = true
	close(w.handshake)
}

// Write takes the pieces in which go-libvirt writes a packet.
func (w *wire) Write(b []byte) (int, error) {
	w.out = append(w.out, b...)
	if len(w.out) < lengthSize || len(w.out) < int(binary.BigEndian.Uint32(w.out)) {
		return len(b), nil
	}
	packet := w.out
	w.out = nil
	m, _, err := parsePacket(packet[lengthSize:])
	switch {
	case err != nil:
	case !w.shaken:
		m.kind = typeReply
		w.handshake <- m.packet(make([]byte, 4)) // an empty list of authentication types; or success
	default:
		err = w.send(m)
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// send sends a call that go-libvirt makes. It reports no failure to write: the daemon may have
// answered before it hung up, and go-libvirt would have forgotten the call and wait for it with a
// lock held.
func (w *wire) send(m message) error {
	p, err := w.conn.leave(m.header)
	if err != nil {
		w.conn.fail(err)
		return err
	}
	if len(p.fds) > 0 {
		m.kind = typeCallWithFiles
		m.payload = append(binary.BigEndian.AppendUint32(nil, uint32(len(p.fds))), m.payload...)
	}
	if err := w.write(m.packet(m.payload), p.fds); err != nil {
		w.conn.work.Go(func() { // which p is counted in
			select {
			case <-w.conn.done: // with what the daemon said, which tells more
			case <-time.After(lastWords):
			}
			w.conn.fail(errEnded(err))
		})
	}
	close(p.written)
	w.conn.yield(p)
	return nil
}

// write writes a packet and then each file with one byte, as libvirt expects
// it (virNetClientIOWriteMessage in src/rpc/virnetclient.c).
func (w *wire) write(packet []byte, fds descriptors) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	return send(w.UnixConn, packet, fds)
}

func send(uc *net.UnixConn, packet []byte, fds descriptors) error {
	if _, err := uc.Write(packet); err != nil {
		return err
	}
	for _, fd := range fds {
		if _, _, err := uc.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
			return err
		}
	}
	return nil
}

// pong answers pings until the connection ends.
func (w *wire) pong() {
	h := header{keepaliveProgram, programVersion, keepalivePong, typeMessage, 0, statusOK}
	for {
		select {
		case <-w.pings:
			if err := w.write(h.packet(nil), nil); err != nil {
				w.conn.fail(errEnded(err))
			}
		case <-w.conn.done:
			return
		}
	}
}

// Read gives go-libvirt the bytes of replies. Its end is the connection's.
func (w *wire) Read(b []byte) (int, error) {
	for len(w.in) == 0 && !w.ended {
		if err := w.receive(); err != nil {
			w.ended = true
			w.conn.fail(err)
			w.conn.endEvents()
			close(w.idle)
		}
	}
	if len(w.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, w.in)
	w.in = w.in[n:]
	return n, nil
}

// receive takes in one message, which may be one for go-libvirt.
func (w *wire) receive() error {
	if answer, ok := <-w.handshake; ok {
		w.in = answer
		return nil
	}
	m, err := readMessage(socket{w.UnixConn})
	if err != nil {
		if !errors.Is(err, ErrProtocol) {
			err = errEnded(err)
		}
		return err
	}
	return w.dispatch(m)
}

// dispatch passes a message to its receiver. The daemon makes no calls, and we open no streams.
func (w *wire) dispatch(m message) error {
	known := m.program == remoteProgram || m.program == qemuProgram || m.program == keepaliveProgram
	switch {
	case !known || m.version != programVersion:
	case m.kind == typeReply || m.kind == typeReplyWithFiles:
		payload, err := w.conn.arrive(m)
		if err == nil {
			m.kind = typeReply
			w.in = m.packet(payload)
		}
		return err
	case m.kind == typeMessage && m.program == keepaliveProgram:
		if m.procedure == keepalivePing {
			select {
			case w.pings <- struct{}{}:
			default:
			}
		}
		return nil
	case m.kind == typeMessage:
		return w.conn.event(m)
	}
	fdpass.CloseAll(m.files)
	return fmt.Errorf("%w: unexpected: %s", ErrProtocol, m.header)
}
