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

// lastWords bounds the time to read a daemon's last messages before it hung up.
const lastWords = time.Second

const (
	keepalivePing = 1
	keepalivePong = 2
)

// wire is go-libvirt's connection to the daemon. It sends go-libvirt's calls as whole packets, with
// their files. It reads all incoming messages, and passes on only replies to calls, one well-formed
// packet at a time: go-libvirt trusts every length, knows no files, and cannot keep events that
// arrive before the reply to their registration.
type wire struct {
	*net.UnixConn
	conn      *Conn
	handshake chan []byte   // answers to go-libvirt's handshake; closed when that is over
	idle      chan struct{} // closed when reading has ended

	// For the reader, a single goroutine.
	in    []byte // what go-libvirt reads next
	ended bool

	out     []byte        // the part of a packet that go-libvirt has written
	shaken  bool          // handshake is closed
	writing sync.Mutex    // held for a packet with its files
	pings   chan struct{} // unanswered pings; one stands for all
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

// Dial makes wire the dialer from which go-libvirt gets its connection.
func (w *wire) Dial() (net.Conn, error) { return w, nil }

// connected ends the handshake. From then on the daemon is the peer.
func (w *wire) connected() {
	w.shaken = true
	close(w.handshake)
}

// Write collects the pieces in which go-libvirt writes a packet.
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

// send sends a call of go-libvirt. It does not report a failed write: the daemon may have answered
// before it hung up, and go-libvirt would then wait for a call that it has forgotten while it holds
// a lock.
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
		w.conn.work.Go(func() { // in which p is counted
			select {
			case <-w.conn.done: // with the daemon's own reason, which says more
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

// Read returns the bytes of replies to go-libvirt. It ends with the connection.
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

// receive reads one message, which may be for go-libvirt.
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

// dispatch passes a message to its receiver. The daemon makes no calls, and this client opens no
// streams.
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
