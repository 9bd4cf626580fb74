package server

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/fdpass"
)

// takeTime is how long a switch waits for the one that takes over its ports. Their frames wait
// meanwhile, or are lost.
const takeTime = 10 * time.Second

// HandsOver permits clients to take over the ports, and l. taken, which may be nil, is called with
// the pid of a process before it hears that the ports are its own. From now on a store has all that
// the next process needs (KeepIn), unless it is slow. Call HandsOver before Serve, in a process
// that does nothing but switch.
func (s *Server) HandsOver(l *Listener, taken func(pid int)) {
	s.handsOver, s.handsTo = l, taken
	s.ports.keeper.keepWhole()
	s.ports.keeper.await(wholePatience)
}

// HandedTo reports whether a process has taken over the ports, and which one. Call it after Serve:
// it waits for the end of a hand-over. The listener then belongs to that process: call Abandon
// instead of Close.
func (s *Server) HandedTo() (pid int, taken bool) {
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	return s.handedTo, s.ports.gone
}

// handOver gives all ports to a client. They go on here if the client does not confirm in time that
// it has taken them.
func (s *Server) handOver(c *call) error {
	if s.handsOver == nil || c.session == nil {
		return fmt.Errorf("%w request: this process does more than to switch, and keeps its ports", brport.ErrInvalid)
	}
	if !s.pause() {
		return errors.New("the switch is handed over already, or ends")
	}
	s.ports.keeper.await(wholePatience) // while frames pass; the next process does what is left
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	defer s.ports.keeper.halt()()
	rests, entries, err := s.ports.freeze()
	if err == nil {
		err = s.sendParts(c, rests, entries)
	}
	if err == nil {
		err = c.session.awaitTaken()
	}
	if err != nil {
		err = errors.Join(err, s.ports.thaw(rests, entries))
		s.resume()
		return err
	}
	s.ports.keeper.detach()
	for name, e := range s.ports.byName {
		delete(s.ports.byName, name)
		_ = e.close() // the other process has copies
	}
	closeRests(rests)
	peer, err := fdpass.PeerOf(c.session.conn)
	s.handedTo, s.ports.gone = int(peer.Pid), true
	if s.handsTo != nil {
		s.handsTo(s.handedTo)
	}
	return errors.Join(errStop, err)
}

// pause makes Serve accept no further clients. It reports whether it was accepting them.
func (s *Server) pause() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused != nil || s.closed {
		return false
	}
	s.paused = make(chan struct{})
	_ = s.handsOver.ln.SetDeadline(time.Unix(1, 0))
	return true
}

func (s *Server) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stopped:
	default:
		_ = s.handsOver.ln.SetDeadline(time.Time{})
	}
	close(s.paused)
	s.paused = nil
}

// awaitResume waits until the switch accepts clients again, and reports whether it does.
func (s *Server) awaitResume(done <-chan struct{}) bool {
	s.mu.Lock()
	paused := s.paused
	s.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-s.stopped:
		case <-done:
		}
	}
	select {
	case <-s.stopped:
		return false
	case <-done:
		return false
	default:
		return true
	}
}

func (s *Server) sendParts(c *call, rests map[string]vswitch.Rest, entries []control.FDBEntry) error {
	l, err := s.handsOver.ln.File()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := c.send(control.Reply{Handed: &control.Handed{}}, l, os.Stdout, os.Stderr); err != nil {
		return err
	}
	if err := s.sendStore(c); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(rests)) {
		e, r := s.ports.byName[name], rests[name]
		if !r.Empty() {
			if err := sendRest(c, name, r); err != nil {
				return err
			}
		}
		h := control.Handed{Port: &e.Port, Stored: s.ports.keeper.storedOf(e.shelf)}
		if err := c.send(control.Reply{Handed: &h}, e.files...); err != nil {
			return err
		}
	}
	err = inChunks(entries, func(some []control.FDBEntry) error { return c.send(control.Reply{FDB: some}) })
	if err != nil {
		return err
	}
	return c.session.send(control.Reply{})
}

// sendStore sends what the store has besides the ports.
func (s *Server) sendStore(c *call) error {
	stale, whole := s.ports.keeper.rest()
	err := c.send(control.Reply{Handed: &control.Handed{Store: &control.HandedStore{Whole: whole}}})
	if err != nil {
		return err
	}
	return inChunks(stale, func(some []string) error {
		return c.send(control.Reply{Handed: &control.Handed{Store: &control.HandedStore{Forget: some}}})
	})
}

// sendRest sends a port's rest, whose bytes are in a file: a message has not enough room.
func sendRest(c *call, name string, r vswitch.Rest) error {
	fd, err := unix.MemfdCreate("rest of "+name, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "rest")
	defer f.Close()
	for _, b := range [][]byte{r.Read, r.Backlog} {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	files := []*os.File{f}
	if r.Conn != nil {
		files = append(files, r.Conn)
	}
	files = append(files, r.Files...)
	return c.send(control.Reply{Handed: &control.Handed{Rest: &control.HandedRest{
		Name: name, Read: len(r.Read), Backlog: len(r.Backlog), Skip: r.Skip, Link: r.Link,
		Session: r.Session, Conn: r.Conn != nil,
	}}}, files...)
}

// awaitTaken waits until the client has said that it serves the ports.
func (c *session) awaitTaken() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(takeTime)); err != nil {
		return err
	}
	b, _, err := fdpass.ReceiveOver(c.conn, make([]byte, control.MaxMessage), 0)
	if err = errors.Join(err, c.conn.SetReadDeadline(time.Time{})); err != nil {
		return fmt.Errorf("the client has not taken the ports: %w", err)
	}
	r, err := parseRequest(b)
	if err == nil && r.Do != control.DoTaken {
		err = fmt.Errorf("%w request: %s before %s", brport.ErrInvalid, r.Do, control.DoTaken)
	}
	return err
}

// freeze takes all ports that have not ended from the switch, and returns what they and the FDB
// hold. The others are forgotten. On error, thaw returns those that it has taken.
func (s *ports) freeze() (rests map[string]vswitch.Rest, entries []control.FDBEntry, err error) {
	entries = s.entries(s.indexed(), s.sw.FDB().Dump())
	rests = map[string]vswitch.Rest{}
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		if e := s.byName[name]; e.in.Err() != nil {
			s.forget(e)
			continue
		}
		r, err := s.sw.HandOver(name)
		if err != nil {
			return rests, entries, err
		}
		rests[name] = r
	}
	return rests, entries, nil
}

// thaw returns ports that freeze has taken to the switch. One that fails is removed.
func (s *ports) thaw(rests map[string]vswitch.Rest, entries []control.FDBEntry) error {
	defer closeRests(rests)
	var errs []error
	for name, r := range rests {
		e := s.byName[name]
		w, err := openResumed(&e.Port, e.files, r)
		if err == nil {
			err = s.plugIn(e, w)
		}
		if err != nil {
			delete(s.byName, name)
			s.forget(e)
			errs = append(errs, fmt.Errorf("port %s is gone: %w", name, errors.Join(err, e.close())))
		}
	}
	s.relearn(entries)
	s.keep()
	return errors.Join(errs...)
}

func closeRests(rests map[string]vswitch.Rest) {
	for _, r := range rests {
		_ = r.Close()
	}
}

// relearn adds entries of another FDB. Those that do not fit are learned from frames, or flooded.
func (s *ports) relearn(entries []control.FDBEntry) {
	ports := map[string]*vswitch.Port{}
	for _, p := range s.sw.Ports() {
		ports[p.Name()] = p
	}
	for _, f := range entries {
		mac, err := f.Address()
		p := ports[f.Port]
		switch {
		case err != nil || p == nil || f.Remote != "": // a VXLAN port hears of it again
		case f.Static:
			_ = s.sw.AddStatic(f.Port, mac, f.VLAN) // another port may have it by its settings
		default:
			s.sw.FDB().Learn(vswitch.KeyOf(mac, uint16(max(f.VLAN, 1))), p.PortIndex())
		}
	}
}
