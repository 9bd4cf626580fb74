// Package server is the switch's side of a control socket: it listens, checks who connects, and
// changes the switch (package vswitch) as the requests of clients ask (package control).
//
//	server.go   the connections, and the requests of one
//	verbs.go    what each request does
//	ports.go    the switch's ports, with holders (holder.go) and known loops (loop.go)
//	addresses.go the FDB
//	listen.go   the socket and its directory
//	keep.go     what a service manager keeps (keeper.go) for the next process (kept.go)
//
// A switch hands its ports over to another process (handover.go), which takes them over
// (takeover.go).
package server

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

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/fdpass"
)

// A Server serves a switch's control socket.
type Server struct {
	info  control.Info
	ports ports

	stopped  chan struct{} // closed when a client has stopped the switch
	stopOnce sync.Once

	mu       sync.Mutex // guards sessions, closed and paused
	sessions map[*session]struct{}
	closed   bool
	paused   chan struct{} // closed when the switch accepts clients again; nil while it does

	handsOver *Listener     // may be handed over, or nil
	handsTo   func(pid int) // see HandsOver
	handedTo  int           // guarded by ports.mu, as ports.gone is
	serving   sync.WaitGroup
}

// New makes a server for a switch without ports. All ports must be added through the server.
// It uses only Name, Version, Ageing, Addresses, Poll, PollCPUs and FastPath of info.
func New(sw *vswitch.Switch, info control.Info) *Server {
	info.PID, info.Started = os.Getpid(), time.Now()
	return &Server{
		info: info, ports: ports{sw: sw, byName: map[string]*entry{}},
		stopped: make(chan struct{}), sessions: map[*session]struct{}{},
	}
}

// Confined says what confines the process, for Info. Call it before Serve.
func (s *Server) Confined(by []string) { s.info.Sandbox = by }

// AddPort adds a port of this process itself, as Client.AddPort does.
func (s *Server) AddPort(p control.Port, files ...*os.File) error {
	if least, most := filesOf(&p); len(files) < least || len(files) > most {
		return fmt.Errorf("%w port %s: %d files: want %d to %d", brport.ErrInvalid, p.Name, len(files), least, most)
	}
	return s.ports.add(p, files)
}

// Ports returns the ports with their counters, sorted by name.
func (s *Server) Ports() []control.Port { return s.ports.list() }

func (s *Server) stop() { s.stopOnce.Do(func() { close(s.stopped) }) }

// Limits for clients.
const (
	maxSessions = 64
	sendTimeout = 5 * time.Second // for each message
)

// Serve serves clients until ctx ends or a client stops the switch, and then returns nil. Close
// closes the connections that remain.
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
			if !s.awaitResume(ctx.Done()) {
				return nil
			}
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		case err != nil: // no fd left
			s.evict()
			time.Sleep(10 * time.Millisecond)
		default:
			s.admit(conn)
		}
	}
}

// Close ends the current requests and closes the connections. Call it after the switch was closed.
func (s *Server) Close() {
	s.stop()
	s.ports.drop() // before a client that has stopped the switch hears that it has ended
	s.mu.Lock()
	s.closed = true
	for c := range s.sessions {
		_ = c.conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
	s.ports.waiting.Wait()
}

// A session is one client's connection.
type session struct {
	conn *net.UnixConn
	busy atomic.Bool
	last atomic.Int64 // when the last request ended, in Unix nanoseconds
}

// admit serves a client if its user may connect. To make room, it closes the connection that was
// idle for the longest time.
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

// makeRoom makes room for one more session and reports whether there is any. The caller holds s.mu.
func (s *Server) makeRoom() bool {
	return len(s.sessions) < maxSessions || s.evictSilent()
}

func (s *Server) evict() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictSilent()
}

// evictSilent closes the session that was idle for the longest time, and reports whether there was
// one. The caller holds s.mu.
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

// converse handles a client's requests one by one, until the client closes the connection or
// violates the protocol. It drops a request whose client has closed the connection, for instance
// because the switch was stopped by a signal and did not reply in time: that client has already
// reported a failure.
func (s *Server) converse(c *session) {
	room := make([]byte, control.MaxMessage)
	for {
		b, files, err := fdpass.ReceiveOver(c.conn, room, fdpass.MaxFiles)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				_ = c.send(control.Reply{Error: control.Refuse(err)})
			}
			return
		}
		if c.left() {
			fdpass.CloseAll(files)
			return
		}
		c.busy.Store(true)
		err = s.perform(c, b, files)
		fdpass.CloseAll(files)
		last, stop := control.Reply{}, errors.Is(err, errStop)
		if err != nil && !stop {
			last.Error = control.Refuse(err)
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
	hup := false
	err := fdpass.Control(c.conn, func(fd int) error { hup = hungUp(uintptr(fd)); return nil })
	return err != nil || hup
}

func (c *session) send(a control.Reply, files ...*os.File) error {
	b, err := json.Marshal(a)
	if err == nil {
		err = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	if err == nil {
		err = fdpass.SendOver(c.conn, b, files...)
	}
	return err
}
