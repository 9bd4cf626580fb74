package vswitch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/endpoint"
	"vmnet/internal/vhostuser"
)

// OpenVhostUser makes a wire to the guest of a vhost-user frontend, such as a QEMU: the switch maps
// the guest's memory and copies frames from it and to it. It needs no privilege. f is one of these:
//
//   - a listening AF_UNIX stream socket, to which frontends connect, one after the other. The
//     wire removes the socket's file when it is closed.
//   - a directory, also one opened with O_PATH, in which frontends listen at name, one after the
//     other. The switch connects, again and again until one listens.
//   - a connected AF_UNIX stream socket. The port ends with its frontend.
//
// The guest may use up to that many pairs of queues. The port is down while there is no frontend or
// its guest's driver is not ready. It copies the fd; the caller keeps its own and may close it. It
// makes a socket non-blocking, for the caller's fd too.
func OpenVhostUser(f *os.File, name string, pairs int) (*Wire, error) {
	w, err := openVhostUser(f, name, pairs)
	if err != nil {
		return nil, fmt.Errorf("open vhost-user: %w", err)
	}
	return w, nil
}

func openVhostUser(f *os.File, name string, pairs int) (*Wire, error) {
	v := &frontends{stop: make(chan struct{})}
	w := &Wire{kind: "vhost-user", limits: offload.Limits{VnetHdr: vhostuser.VnetHdr}, frontends: v}
	var err error
	if v.device, err = vhostuser.New(pairs, func() { v.port.frontendChanged() }); err != nil {
		return nil, err
	}
	if err := v.open(f, name); err != nil {
		return nil, errors.Join(err, v.device.Close())
	}
	for n := range pairs {
		w.queues = append(w.queues, &vhostQueue{
			frontends: v, pair: v.device.Pair(n),
			room: make([]byte, tapRoom), got: make([][]byte, batchSize),
		})
	}
	return w, nil
}

// frontends is where the frontends of a port come from.
type frontends struct {
	device *vhostuser.Device
	port   *Port // set before the first one is served
	stop   chan struct{}

	source io.Closer                     // what next uses
	next   func() (*net.UnixConn, error) // waits for the next frontend
	once   bool                          // there is only one
	remove func()                        // removes the socket's file; may be nil
}

// open makes the source from a copy of f.
func (v *frontends) open(f *os.File, name string) error {
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return errors.Join(err, v.connectIn(f, name))
	}
	listens := false
	own, err := duplicate(f, func(fd int) (err error) {
		listens, err = endpoint.CheckVhostUser(fd)
		return err
	})
	if err != nil {
		return err
	}
	if listens {
		err = v.listen(own.os)
	} else {
		err = v.use(own.os)
	}
	return errors.Join(err, own.close())
}

func (v *frontends) listen(f *os.File) error {
	any, err := net.FileListener(f)
	if err != nil {
		return err
	}
	l := any.(*net.UnixListener)
	v.source, v.next = l, l.AcceptUnix
	path := l.Addr().String()
	if was, err := os.Lstat(path); err == nil {
		v.remove = func() {
			if is, err := os.Lstat(path); err == nil && os.SameFile(is, was) {
				_ = os.Remove(path) // the next switch replaces a file that this one may not remove
			}
		}
	}
	return nil
}

func (v *frontends) use(f *os.File) error {
	any, err := net.FileConn(f)
	if err != nil {
		return err
	}
	c := any.(*net.UnixConn)
	v.source, v.once = c, true
	v.next = func() (*net.UnixConn, error) { return c, nil }
	return nil
}

// connectIn makes a source that connects to a socket by its name in a directory.
func (v *frontends) connectIn(f *os.File, name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("%q is not the name of a socket in a directory", name)
	}
	own, err := duplicateAs(f, func(int) error { return nil }, newFile)
	if err != nil {
		return err
	}
	v.source = own.os
	v.next = func() (*net.UnixConn, error) {
		for {
			var c *net.UnixConn
			err := own.control(func(fd int) (err error) {
				path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
				c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
				return err
			})
			if err == nil {
				return c, nil
			}
			if !v.pause(redial) {
				return nil, errClosed
			}
		}
	}
	return nil
}

// How long a switch waits for a frontend to listen, and between sessions. So frontends that hang up
// at once do not keep a processor busy.
const (
	redial    = 200 * time.Millisecond
	afterEnd  = 10 * time.Millisecond
	afterFail = time.Second
)

// between returns how long to wait after a session that has ended with err.
func between(err error) time.Duration {
	if err != nil {
		return afterFail
	}
	return afterEnd
}

// pause waits, and reports whether the wire is still open.
func (v *frontends) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-v.stop:
		return false
	}
}

func (v *frontends) close() error {
	select {
	case <-v.stop:
		return nil
	default:
	}
	close(v.stop)
	err := v.source.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the session has closed it
	}
	if v.remove != nil {
		v.remove()
	}
	return err
}

// errFrontendGone ends a port that was given a connected frontend.
var errFrontendGone = fmt.Errorf("its frontend has closed the connection: %w", unix.ECONNRESET)

// serveFrontends serves one frontend after the other until the port is removed.
func (p *Port) serveFrontends() {
	v := p.wire.frontends
	for {
		conn, err := v.next()
		if err == nil {
			err = v.device.Serve(conn)
		}
		switch {
		case errors.Is(err, fs.ErrClosed) || errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			p.sw.notice("port %s: the session with its frontend has ended: %v", p.name, err)
		}
		if v.once {
			p.endWith(errors.Join(errFrontendGone, err))
			return
		}
		if !v.pause(between(err)) {
			return
		}
	}
}

// gatherTime is how long after its start a switch takes no frames from a guest's ring while other
// guests are still to come. QEMU reconnects every second.
const gatherTime = 3 * time.Second

// gathered waits until the guests of all vhost-user ports are ready, at most until gatherTime after
// the switch's start. Frames wait in the guests' rings meanwhile. So a switch that was killed and
// started again loses none: the guest that comes back first may have a frame for one that comes
// later. It reports whether the wire is still open.
func (v *frontends) gathered() bool {
	sw := v.port.sw
	for time.Since(sw.start) < gatherTime && slices.ContainsFunc(sw.table.Load().ports, (*Port).isComing) {
		if !v.pause(gatherPoll) {
			return false
		}
	}
	return true
}

const gatherPoll = 5 * time.Millisecond

// isComing reports whether the port's guest is not ready yet.
func (p *Port) isComing() bool {
	return p.wire.frontends != nil && p.down.Load() && p.Err() == nil
}

// frontendChanged adapts the port to what its frontend has negotiated and set up.
func (p *Port) frontendChanged() {
	p.limit()
	p.setDown(!p.wire.frontends.device.State().Ready || p.Err() != nil)
}

// vhostQueue is a pair of a guest's rings.
type vhostQueue struct {
	frontends *frontends
	gathered  bool
	pair      *vhostuser.Pair
	room      []byte
	got       [][]byte
}

func (q *vhostQueue) receive(frames []frame) (int, error) {
	if !q.gathered {
		if !q.frontends.gathered() {
			return 0, errClosed
		}
		q.gathered = true
	}
	n, err := q.pair.Receive(q.room, q.got[:len(frames)])
	for i, data := range q.got[:n] {
		frames[i] = frame{data: data}
		if data == nil {
			frames[i].lost = Giant
		}
	}
	return n, err
}

func (q *vhostQueue) send(s *sender) {
	q.pair.Send(&s.guests, s.list[:s.n], s.results[:])
	for i := range s.n {
		switch s.results[i] {
		case vhostuser.Sent:
			s.note(i, 0)
		case vhostuser.Full:
			s.drop(i, i+1, Full)
		case vhostuser.TooLong:
			s.drop(i, i+1, TooBig)
		default: // it was made for a driver that is gone
			s.drop(i, i+1, Down)
		}
	}
}

func (q *vhostQueue) close() error { return q.frontends.device.Close() }
