package vswitch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"vmnet/internal/kernel/fdpass"
)

// A Rest is what a port holds besides its files when it is handed over to another switch.
type Rest struct {
	// Link is what it knows of the device that it follows, which may be in another netns by now, as
	// JSON.
	Link []byte

	// Conn is the current connection of a stream or frontend, for a port that serves one after the
	// other; it may be nil.
	Conn *os.File

	Session []byte     // what a frontend has set up over its connection, as JSON; nil for nothing
	Files   []*os.File // of the Session

	Read    []byte // from the other end, not forwarded: less than a frame, or several
	Skip    int    // bytes to come of a frame that is too long
	Backlog []byte // for the other end

	// Killed says that the other switch was killed: what a stream holds is in its journal.
	Killed bool
}

// Empty reports whether the port needs nothing but its files.
func (r *Rest) Empty() bool {
	return r.Link == nil && r.Conn == nil && r.Session == nil && len(r.Read) == 0 && r.Skip == 0 && len(r.Backlog) == 0
}

// Close closes the files.
func (r *Rest) Close() error {
	fdpass.CloseAll(r.Files)
	if r.Conn == nil {
		return nil
	}
	return r.Conn.Close()
}

// Hold has frames wait in the rings of guests until release is called, for gatherTime at most: a
// switch that takes others' ports over adds one after the other, and a guest may have a frame for
// one that is added later.
func (sw *Switch) Hold() (release func()) {
	sw.held.Store(true)
	return func() { sw.held.Store(false) }
}

// HandOver removes a port as RemovePort does, but leaves its device, its socket's file and its
// connection to those who have copies of the port's files. Frames that it has received are
// forwarded or in the Rest. The caller closes the Rest. On error the port is as it was, or removed.
func (sw *Switch) HandOver(name string) (Rest, error) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	p := sw.table.Load().find(name)
	if p == nil {
		return Rest{}, fmt.Errorf("hand over port %q: %w", name, ErrNoPort)
	}
	if v := p.wire.frontends; v != nil {
		r, err := v.leave()
		if err == nil {
			p.wire.leaveFiles()
			err = sw.remove(p)
		}
		if err != nil {
			return Rest{}, errors.Join(fmt.Errorf("hand over port %q: %w", name, err), r.Close())
		}
		return r, nil
	}
	if p.wire.stream == nil {
		sw.fast.leave(p, true)
		p.wire.leaveFiles()
		return sw.handOverDevice(p)
	}
	r, out, err := p.wire.stream.leave()
	if err != nil {
		return Rest{}, fmt.Errorf("hand over port %q: %w", name, err)
	}
	p.wire.leaveFiles()
	if err := sw.remove(p); err != nil {
		return Rest{}, errors.Join(err, r.Close())
	}
	if found := p.wire.stream.found; found != nil && out != nil {
		r.Read, r.Skip = slices.Clone(found.room[found.start:found.end]), found.skip
		r.Backlog = out.backlog[out.at:]
	}
	return r, nil
}

func (sw *Switch) handOverDevice(p *Port) (r Rest, err error) {
	if err = sw.remove(p); err == nil {
		r.Link, err = p.Followed() // the last one: the port's goroutines have ended
	}
	return r, err
}

// source is where the other ends of the wire's port come from, or nil.
func (w *Wire) source() *source {
	switch {
	case w.frontends != nil:
		return w.frontends.source
	case w.stream != nil:
		return w.stream.source
	}
	return nil
}

// leaveFiles leaves the files of the wire's sockets where they are.
func (w *Wire) leaveFiles() {
	if s := w.source(); s != nil {
		s.handedOver.Store(true)
	}
}

// leave copies the current connection, if there will be others, and makes its sender keep the
// backlog when it is closed.
func (q *streamQueue) leave() (r Rest, out *streamSender, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.out == nil {
		return r, nil, nil
	}
	if !q.once {
		if r.Conn, err = fdpass.Duplicate(q.in.os); err != nil {
			return r, nil, err
		}
	}
	q.out.mu.Lock()
	q.out.kept = true
	q.out.mu.Unlock()
	return r, q.out, nil
}

// Resume makes the wire go on where another switch has handed its port over; FollowOn
// does so for its device. It copies the connection. Call it before AddPort.
func (w *Wire) Resume(r Rest) error {
	q := w.stream
	if w.frontends != nil {
		return w.frontends.resume(r)
	}
	if q == nil {
		if r.Link = nil; !r.Empty() {
			return errors.New("resume: the port is no stream")
		}
		return nil
	}
	if r.Empty() {
		return nil
	}
	if r.Conn != nil && q.in == nil {
		if err := q.adopt(r.Conn); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
	}
	if q.in == nil {
		return errors.New("resume: the stream has no connection")
	}
	room := len(q.found.room) - vnetLen
	if len(r.Read) > room || len(r.Backlog) > maxBacklog+prefixLen+maxFrame || r.Skip < 0 || r.Skip > maxSkip {
		return fmt.Errorf("resume: %d bytes read, %d to skip, %d to write: want at most %d, %d, %d",
			len(r.Read), r.Skip, len(r.Backlog), room, maxSkip, maxBacklog)
	}
	q.journal.read()
	q.found.end += copy(q.found.room[q.found.end:], r.Read)
	q.found.skip = r.Skip
	q.journal.settle(q.found)
	q.out.resume(r.Backlog)
	return nil
}

// adopt makes a connection the current one.
func (q *streamQueue) adopt(f *os.File) error {
	any, err := net.FileConn(f)
	if err != nil {
		return err
	}
	conn, ok := any.(*net.UnixConn)
	if !ok {
		return errors.Join(errors.New("its connection is no Unix socket"), any.Close())
	}
	return q.connectTo(conn)
}

// resume begins with that backlog.
func (t *streamSender) resume(backlog []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.backlog = append(t.backlog, backlog...); len(t.backlog) > 0 && !t.writing && !t.closed {
		t.journal.write()
		t.writing = true
		t.writer.Go(t.write)
	}
}
