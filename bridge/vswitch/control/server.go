package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/internal/kernel/fdpass"
)

// A Server tells of a switch, and changes it, for those who connect.
type Server struct {
	info  Info
	ports ports

	stopped  chan struct{} // closed when somebody has asked for the end
	stopOnce sync.Once

	mu       sync.Mutex // of sessions
	sessions map[*session]struct{}
	closed   bool
	serving  sync.WaitGroup
}

// NewServer is for a switch without ports: all are to come by the server. Of info Name, Version and Ageing count.
func NewServer(sw *vswitch.Switch, info Info) *Server {
	info.PID, info.Started = os.Getpid(), time.Now()
	return &Server{
		info: info, ports: ports{sw: sw, byName: map[string]*entry{}},
		stopped: make(chan struct{}), sessions: map[*session]struct{}{},
	}
}

// AddPort plugs in a port of this process's own, as a Client's does.
func (s *Server) AddPort(p Port, files ...*os.File) error {
	if least, most := filesOf(&p); len(files) < least || len(files) > most {
		return fmt.Errorf("%w port %s: %d files: want %d to %d", bridge.ErrInvalid, p.Name, len(files), least, most)
	}
	return s.ports.add(p, files)
}

// Ports are the ports with their counters, in the order of their names.
func (s *Server) Ports() []Port { return s.ports.list() }

func (s *Server) stop() { s.stopOnce.Do(func() { close(s.stopped) }) }

// Bounds of what clients may keep busy.
const (
	maxSessions = 64
	sendTimeout = 5 * time.Second // of each answer
)

// Serve serves clients until ctx ends or one of them stops the switch, both of which are no error. Close ends those
// that are connected.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.serving.Go(func() {
		select {
		case <-s.stopped:
		case <-ctx.Done():
		}
		_ = l.ln.SetDeadline(time.Unix(1, 0))
	})
	for {
		conn, err := l.ln.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		case err != nil: // no room for one more file
			s.evict()
			time.Sleep(10 * time.Millisecond)
		default:
			s.admit(conn)
		}
	}
}

// Close ends what clients have under way, after the switch was closed, and their connections.
func (s *Server) Close() {
	s.stop()
	s.mu.Lock()
	s.closed = true
	for c := range s.sessions {
		_ = c.conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
	s.ports.close()
}

// A session is one client's connection.
type session struct {
	conn *net.UnixConn
	busy atomic.Bool
	last atomic.Int64 // Unix nanoseconds when it was done with the last request
}

// admit serves a client if it may be, and if there is room: for that, the one that was silent longest has to go.
func (s *Server) admit(conn *net.UnixConn) {
	peer, err := fdpass.PeerOf(conn)
	uid := int(peer.Uid)
	c := &session{conn: conn}
	c.last.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || uid != 0 && uid != os.Geteuid() || s.closed || !s.makeRoom() {
		_ = conn.Close()
		return
	}
	s.sessions[c] = struct{}{}
	s.serving.Go(func() {
		s.converse(c)
		_ = conn.Close()
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
	})
}

// makeRoom tells whether there is room for one more session; s.mu is held.
func (s *Server) makeRoom() bool {
	return len(s.sessions) < maxSessions || s.evictSilent()
}

func (s *Server) evict() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictSilent()
}

// evictSilent hangs up on who was silent longest; s.mu is held.
func (s *Server) evictSilent() bool {
	var silent *session
	for c := range s.sessions {
		if !c.busy.Load() && (silent == nil || c.last.Load() < silent.last.Load()) {
			silent = c
		}
	}
	if silent == nil {
		return false
	}
	delete(s.sessions, silent)
	_ = silent.conn.Close()
	return true
}

// converse answers requests, one after the other, until the client has gone or breaks the rules. What a client has asked for that has
// gone since, for instance because the switch was stopped by a signal and did not answer in time, is not done: the client has
// told that it was not.
func (s *Server) converse(c *session) {
	room := make([]byte, maxMessage)
	for {
		b, files, err := fdpass.ReceiveOver(c.conn, room, fdpass.MaxFiles)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				_ = c.send(answer{Error: refuse(err)})
			}
			return
		}
		if c.left() {
			fdpass.CloseAll(files)
			return
		}
		c.busy.Store(true)
		err = s.perform(b, files, func(a answer) error {
			a.More = true
			return c.send(a)
		})
		fdpass.CloseAll(files)
		last, stop := answer{}, errors.Is(err, errStop)
		if err != nil && !stop {
			last.Error = refuse(err)
		}
		err = c.send(last)
		if stop {
			s.stop()
		}
		c.last.Store(time.Now().UnixNano())
		c.busy.Store(false)
		if err != nil {
			return
		}
	}
}

// left reports whether the client has hung up (POLLHUP, unix(7)).
func (c *session) left() bool {
	conn, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	err = conn.Control(func(fd uintptr) { hup = hungUp(fd) })
	return err != nil || hup
}

func (c *session) send(a answer) error {
	b, err := json.Marshal(a)
	if err == nil {
		err = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	if err == nil {
		err = fdpass.SendOver(c.conn, b)
	}
	return err
}
