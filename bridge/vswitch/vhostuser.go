package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/announce"
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
	v := &frontends{}
	w := &Wire{kind: "vhost-user", limits: offload.Limits{VnetHdr: vnetLen}, pieces: true, frontends: v}
	var err error
	if v.device, err = vhostuser.New(pairs, func() { v.port.frontendChanged() }); err != nil {
		return nil, err
	}
	v.device.Announce = func(mac net.HardwareAddr) { v.port.inject(announce.Frames(mac, nil)) }
	if v.source, err = openSource(f, name); err != nil {
		return nil, errors.Join(err, v.device.Close())
	}
	for n := range pairs {
		w.queues = append(w.queues, &vhostQueue{frontends: v, pair: v.device.Pair(n)})
	}
	return w, nil
}

// frontends is where the frontends of a port come from.
type frontends struct {
	*source
	device *vhostuser.Device
	port   *Port // set before the first one is served
	later        // see frontends_resume.go
}

// errFrontendGone ends a port that was given a connected frontend.
var errFrontendGone = fmt.Errorf("its frontend has closed the connection: %w", unix.ECONNRESET)

// serveFrontends serves one frontend after the other until the port is removed.
func (p *Port) serveFrontends() {
	v := p.wire.frontends
	for {
		err := v.serveNext()
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

// OtherEnded says that the processes at the port's other end have ended. If they were killed, they
// have left the file of the socket on which they listened for the switch. It is removed with the
// port.
func (p *Port) OtherEnded() {
	if v := p.wire.frontends; v != nil {
		v.ended.Store(true)
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
	for time.Since(sw.start) < gatherTime &&
		(sw.held.Load() || slices.ContainsFunc(sw.table.Load().ports, (*Port).isComing)) {
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
	got       [batchSize]vhostuser.Received
}

func (q *vhostQueue) receive(frames []frame) (int, error) {
	if !q.gathered {
		if !q.frontends.gathered() {
			return 0, errClosed
		}
		q.gathered = true
	}
	n, err := q.pair.Receive(q.got[:len(frames)])
	q.take(frames, n)
	return n, err
}

// look is receive without waiting.
func (q *vhostQueue) look(frames []frame) (n int, ok bool) {
	n, ok = q.pair.Look(q.got[:len(frames)])
	q.take(frames, n)
	return n, ok
}

func (q *vhostQueue) take(frames []frame, n int) {
	for i := range n {
		g, f := &q.got[i], &frames[i] // parse sets the other fields
		f.data, f.rest, f.more, f.lost = g.Head, g.Rest, g.More, Delivered
		if g.Head == nil {
			f.lost = Giant
		}
	}
}

// whole reports whether it could make the frame whole: see receiver.whole.
func (q *vhostQueue) whole(f *frame) bool {
	g := vhostuser.Received{Head: f.data, Rest: f.rest, More: f.more}
	if !q.pair.Whole(&g) {
		return false
	}
	f.data, f.rest, f.more = g.Head, nil, 0
	return true
}

func (q *vhostQueue) send(s *sender) {
	q.pair.Send(&s.guests, s.list[:s.n], s.results[:])
	for i := range s.n {
		switch s.results[i] {
		case vhostuser.Sent:
			s.sent(i)
		case vhostuser.Full:
			s.drop(i, i+1, Full)
		case vhostuser.TooLong:
			s.drop(i, i+1, TooBig)
		case vhostuser.Lost:
			s.drop(i, i+1, Unreadable)
		default: // it was made for a driver that is gone
			s.drop(i, i+1, Down)
		}
	}
}

func (q *vhostQueue) close() error {
	return errors.Join(q.frontends.device.Close(), q.frontends.forget())
}
