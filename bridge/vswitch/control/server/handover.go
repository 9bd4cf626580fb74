package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/sockopt"
)

// takeTime is how long a switch waits for the one that takes over its ports. Their frames wait
// meanwhile, or are lost.
const takeTime = 10 * time.Second

// HandsOver permits clients to take over the ports, and l. Call it before Serve, in a process that
// does nothing but switch.
func (s *Server) HandsOver(l *Listener) { s.handsOver = l }

// HandedTo returns the process that has taken over the ports, or 0. Call it after Serve. The
// listener then belongs to that process: call Abandon instead of Close.
func (s *Server) HandedTo() int { return s.handedTo }

// handOver gives all ports to a client. They go on here if the client does not confirm in time that
// it has taken them.
func (s *Server) handOver(c *call) error {
	if s.handsOver == nil || c.session == nil {
		return fmt.Errorf("%w request: this process does more than to switch, and keeps its ports", brport.ErrInvalid)
	}
	if !s.pause() {
		return errors.New("the switch is handed over already, or ends")
	}
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
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
	for name, e := range s.ports.byName {
		delete(s.ports.byName, name)
		_ = e.close() // the other process has copies
	}
	closeRests(rests)
	peer, err := fdpass.PeerOf(c.session.conn)
	s.handedTo = int(peer.Pid)
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
	_ = s.handsOver.ln.SetDeadline(time.Time{})
	close(s.paused)
	s.paused = nil
}

// awaitResume waits until the switch accepts clients again, and reports whether it does. It returns
// at once if it was not paused.
func (s *Server) awaitResume(done <-chan struct{}) bool {
	s.mu.Lock()
	paused := s.paused
	s.mu.Unlock()
	if paused == nil {
		return false
	}
	select {
	case <-paused:
	case <-s.stopped:
		return false
	case <-done:
		return false
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
	for _, name := range slices.Sorted(maps.Keys(s.ports.byName)) {
		e := s.ports.byName[name]
		if r := rests[name]; !r.Empty() {
			if err := sendRest(c, name, r); err != nil {
				return err
			}
		}
		if err := c.send(control.Reply{Handed: &control.Handed{Port: &e.Port}}, e.files...); err != nil {
			return err
		}
	}
	err = inChunks(entries, func(some []control.FDBEntry) error { return c.send(control.Reply{FDB: some}) })
	if err != nil {
		return err
	}
	return c.session.send(control.Reply{})
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
	return c.send(control.Reply{Handed: &control.Handed{Rest: &control.HandedRest{
		Name: name, Read: len(r.Read), Backlog: len(r.Backlog), Skip: r.Skip, Link: r.Link,
	}}}, files...)
}

// awaitTaken waits until the client has said that it serves the ports.
func (c *session) awaitTaken() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(takeTime)); err != nil {
		return err
	}
	b, files, err := fdpass.ReceiveOver(c.conn, make([]byte, control.MaxMessage), 0)
	fdpass.CloseAll(files)
	if err = errors.Join(err, c.conn.SetReadDeadline(time.Time{})); err != nil {
		return fmt.Errorf("the client has not taken the ports: %w", err)
	}
	r, err := parseRequest(b)
	if err == nil && r.Do != control.DoTaken {
		err = fmt.Errorf("%w request: %s before %s", brport.ErrInvalid, r.Do, control.DoTaken)
	}
	return err
}

// freeze takes all ports from the switch, and returns what they and the FDB hold. On error, thaw
// returns those that it has taken.
func (s *ports) freeze() (rests map[string]vswitch.Rest, entries []control.FDBEntry, err error) {
	entries = s.entries(s.indexed())
	rests = map[string]vswitch.Rest{}
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
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
			errs = append(errs, fmt.Errorf("port %s is gone: %w", name, errors.Join(err, e.close())))
		}
	}
	s.relearn(entries)
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
			_ = s.sw.AddStatic(f.Port, mac, f.VLAN) // fails for one that AddPort has added
		default:
			s.sw.FDB().Learn(vswitch.KeyOf(mac, uint16(max(f.VLAN, 1))), p.PortIndex())
		}
	}
}

// A Taking is what a switch takes over from another one.
type Taking struct {
	server *Server
	path   string
	rests  map[string]vswitch.Rest
	output []*os.File // standard output and standard error of the other switch

	Listener *Listener // after the first part
}

// Taking begins to take over the ports of the switch at that path. The caller must call Close.
func (s *Server) Taking(path string) *Taking {
	return &Taking{server: s, path: path, rests: map[string]vswitch.Rest{}}
}

// Close closes what nothing has taken.
func (t *Taking) Close() {
	closeRests(t.rests)
	fdpass.CloseAll(t.output)
	t.output = nil
}

// TakeOutput makes standard output and standard error those of the other switch.
func (t *Taking) TakeOutput() error {
	var errs []error
	for i, f := range t.output {
		errs = append(errs, redirect(f, 1+i))
	}
	return errors.Join(errs...)
}

// Part takes a part (control.Client.HandOver). It copies the files. The other switch may be
// hostile: it can do no more than with AddPort.
func (t *Taking) Part(h control.Handed, files []*os.File) (err error) {
	switch {
	case h.Rest != nil:
		return t.rest(h.Rest, files)
	case h.Port == nil && t.Listener == nil && len(files) == 3:
		if t.Listener, err = adopt(files[0], t.path); err == nil {
			t.output, err = copies(files[1:])
		}
		return err
	case h.Port == nil:
		return errors.New("an empty part")
	}
	p := *h.Port
	if least, most := filesOf(&p); len(files) < least || len(files) > most {
		return fmt.Errorf("%w port %s: %d files: want %d to %d", brport.ErrInvalid, p.Name, len(files), least, most)
	}
	r := t.rests[p.Name]
	delete(t.rests, p.Name)
	defer r.Close()
	err = checkPort(p)
	if err == nil {
		err = t.server.ports.addResumed(p, files, r)
	}
	if errors.Is(err, errEnded) { // its guest has ended meanwhile
		return nil
	}
	if err != nil {
		return fmt.Errorf("port %s: %w", p.Name, err)
	}
	return nil
}

// Entries takes addresses of the other switch.
func (t *Taking) Entries(entries []control.FDBEntry) error {
	t.server.ports.relearn(entries)
	return nil
}

// maxRest is more than a rest has: four frames, and a backlog.
const maxRest = 8 << 20

func (t *Taking) rest(h *control.HandedRest, files []*os.File) error {
	if len(files) < 1 || len(files) > 2 || h.Read < 0 || h.Backlog < 0 || h.Read > maxRest || h.Backlog > maxRest {
		return fmt.Errorf("rest of port %.40q: %d files, %d and %d bytes", h.Name, len(files), h.Read, h.Backlog)
	}
	b := make([]byte, h.Read+h.Backlog)
	if _, err := io.ReadFull(io.NewSectionReader(files[0], 0, int64(len(b))), b); err != nil {
		return fmt.Errorf("rest of port %.40q: %w", h.Name, err)
	}
	r := vswitch.Rest{Read: b[:h.Read], Backlog: b[h.Read:], Skip: h.Skip, Link: h.Link}
	if len(files) == 2 {
		own, err := copies(files[1:])
		if err != nil {
			return err
		}
		r.Conn = own[0]
	}
	if old, ok := t.rests[h.Name]; ok {
		_ = old.Close()
	}
	t.rests[h.Name] = r
	return nil
}

// adopt makes a Listener of the socket of a switch that is handed over.
func adopt(f *os.File, path string) (*Listener, error) {
	fd, err := fdpass.DuplicateFD(f)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	err = sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_SEQPACKET, "the listening socket of a switch")
	if err != nil {
		return nil, err
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, errors.Join(errors.New("the socket of the switch does not listen"), err)
	}
	any, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	ln := any.(*net.UnixListener)
	l := &Listener{path: path, ln: ln}
	if l.file, err = os.Lstat(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, ln.Close())
	}
	return l, nil
}

// Abandon closes the socket for this process, and leaves its file to the one that has it.
func (l *Listener) Abandon() error { return l.ln.Close() }

// redirect makes fd a copy of f, which is a standard file of another process.
func redirect(f *os.File, fd int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(conn.Control(func(from uintptr) { err = unix.Dup3(int(from), fd, 0) }), err)
}
