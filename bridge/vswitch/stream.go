package vswitch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vmnet/internal/endpoint"
)

// OpenStream makes a wire from an AF_UNIX stream socket on which each frame follows its length, 4
// bytes in network order. A frame is an Ethernet frame with all its tags and without a vnet header.
// QEMU's netdevs stream and socket, passt and socket_vmnet use this format. It needs no privilege.
// f and name are as for OpenVhostUser: the socket listens, or others listen in a directory, or it
// is connected.
//
// The port is down while nobody is connected. A port that was given a connected socket ends with
// the other end. A frame that does not fit into the socket waits in the switch, with as many others
// as maxBacklog has room for; then frames are dropped whole, as Full.
//
// It copies the fd; the caller keeps its own and may close it. It makes a socket non-blocking, for
// the caller's fd too.
func OpenStream(f *os.File, name string) (*Wire, error) {
	from, err := openSource(f, name)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	q := &streamQueue{source: from}
	q.fill = q.fillFrames
	if from.once {
		if err := q.connect(); err != nil {
			return nil, errors.Join(fmt.Errorf("open stream: %w", err), q.close())
		}
	}
	return &Wire{kind: "stream", pieces: true, stream: q, queues: []queue{q}}, nil
}

// StreamPair makes a wire as OpenStream does, and returns its other end, which is for QEMU and has
// the same buffer size. The caller owns that file.
func StreamPair() (*Wire, *os.File, error) {
	near, far, err := endpoint.StreamFiles()
	if err != nil {
		return nil, nil, err
	}
	defer near.Close()
	w, err := OpenStream(near, "")
	if err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return w, far, nil
}

// streamQueue receives from one connection after the other, and sends to it.
type streamQueue struct {
	*source
	port *Port // set before the first receive

	in     *polled // the connection; nil for none. Only receive and OpenStream change it
	found  *unframer
	fill   func(fd uintptr) (int, error) // the method fillFrames, bound once
	frames []frame                       // of the current receive

	journal *journal // may be nil: see Wire.Keep

	mu     sync.Mutex // held by senders
	closed bool
	out    *streamSender // of the connection; nil for none
}

// errStreamGone ends a port that was given a connected socket.
var errStreamGone = fmt.Errorf("the other end of its stream was closed: %w", unix.ECONNRESET)

func (q *streamQueue) receive(frames []frame) (n int, err error) {
	q.frames = frames
	for {
		if q.in == nil {
			err = q.connect()
		}
		if err == nil {
			q.journal.read()
			n, err = q.found.take(frames)
			q.journal.settle(q.found)
		}
		if n == 0 && err == nil {
			n, err = q.in.read(q.fill)
		}
		if err == nil {
			return n, nil
		}
		if err := q.hangUp(err); err != nil {
			return 0, err
		}
	}
}

// fillFrames returns 0 if there is nothing to receive.
func (q *streamQueue) fillFrames(fd uintptr) (int, error) {
	q.journal.read()
	defer q.journal.settle(q.found)
	for {
		n, errno := read(fd, q.found.space())
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return 0, nil
		case errno != 0:
			return 0, fmt.Errorf("read: %w", errno)
		case n == 0:
			return 0, io.EOF
		}
		q.found.end += n
		if n, err := q.found.take(q.frames); n > 0 || err != nil {
			return n, err
		}
	}
}

// connect waits for the next connection.
func (q *streamQueue) connect() error {
	conn, err := q.next()
	if err != nil {
		return err
	}
	return q.connectTo(conn)
}

// connectTo makes conn the current connection.
func (q *streamQueue) connectTo(conn *net.UnixConn) error {
	in, err := polledConn(conn)
	if err != nil {
		return err
	}
	out, err := newStreamSender(in.file)
	if err != nil {
		return errors.Join(err, in.close())
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errors.Join(errClosed, out.close(), in.close())
	}
	q.in, q.out, q.found = in, out, newUnframer()
	if q.port != nil {
		q.port.setDown(q.port.Err() != nil)
	}
	return nil
}

// polledConn makes the socket of a connection one from which frames are received. It closes conn.
func polledConn(conn *net.UnixConn) (*polled, error) {
	f, err := conn.File()
	err = errors.Join(err, conn.Close())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return duplicatePolled(f, endpoint.CheckStreamBuffers)
}

// hangUp ends the connection, if any, for the reason why. It returns an error if there will be no
// other one.
func (q *streamQueue) hangUp(why error) error {
	err := q.disconnect()
	select {
	case <-q.stop:
		return errClosed
	default:
	}
	switch {
	case errors.Is(why, fs.ErrClosed), errors.Is(why, net.ErrClosed): // it was removed
		return why
	case why == io.EOF || errors.Is(why, unix.ECONNRESET):
		why = nil
	}
	if err = errors.Join(why, err); q.once {
		return errors.Join(errStreamGone, err)
	}
	q.port.setDown(true)
	if err != nil {
		q.port.sw.notice("port %s: its stream has ended: %v", q.port.name, err)
	}
	if !q.pause(between(err)) {
		return errClosed
	}
	return nil
}

// disconnect closes the connection, if any.
func (q *streamQueue) disconnect() error {
	q.mu.Lock()
	in, out := q.in, q.out
	q.in, q.out = nil, nil
	q.mu.Unlock()
	if in == nil {
		return nil
	}
	return errors.Join(out.close(), in.close())
}

func (q *streamQueue) send(s *sender) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.out == nil {
		s.drop(0, s.n, Down)
		return
	}
	q.out.send(s)
}

// close ends a receive, which then closes the connection too if there is one.
func (q *streamQueue) close() error {
	q.mu.Lock()
	q.closed = true
	in, out := q.in, q.out
	q.mu.Unlock()
	err := q.source.close()
	if in != nil {
		err = errors.Join(err, out.close(), in.close())
	}
	return err
}
