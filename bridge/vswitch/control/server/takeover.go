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
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/sockopt"
)

// A Taking is what a switch takes over from another one. Nothing of it is used before Begin, so
// that the other switch can go on as it was.
type Taking struct {
	server *Server
	path   string
	parts  []part
	rests  map[string]vswitch.Rest
	fdb    []control.FDBEntry
	store  control.HandedStore
	output []*os.File // standard output and standard error of the other switch

	Listener *Listener // after the first part
}

// part is a port that is handed over, with its files.
type part struct {
	control.Port
	kept  control.Stored
	files []*os.File

	text, session []byte // the stored descriptions of the port and its session; nil if not known
}

// Taking begins to take over the ports of the switch at that path. The caller must call Close.
func (s *Server) Taking(path string) *Taking {
	return &Taking{server: s, path: path, rests: map[string]vswitch.Rest{}}
}

// Close closes what nothing has taken.
func (t *Taking) Close() {
	closeRests(t.rests)
	fdpass.CloseAll(t.output)
	for _, p := range t.parts {
		fdpass.CloseAll(p.files)
	}
	t.rests, t.output, t.parts = nil, nil, nil
}

// TakeOutput makes standard output and standard error those of the other switch.
func (t *Taking) TakeOutput() error {
	var errs []error
	for i, f := range t.output {
		errs = append(errs, redirect(f, 1+i))
	}
	return errors.Join(errs...)
}

// Ports returns how many ports are handed over.
func (t *Taking) Ports() int { return len(t.parts) }

// Part keeps a part (control.Client.HandOver), with copies of the files. The other switch may be
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
	case h.Store != nil && len(files) == 0:
		t.store.Whole = t.store.Whole || h.Store.Whole
		for _, name := range h.Store.Forget {
			if _, _, ok := parseName(name); ok {
				t.store.Forget = append(t.store.Forget, name)
			}
		}
		return nil
	}
	p, err := t.checkPart(&h, len(files))
	if err != nil {
		return err
	}
	if p.files, err = copies(files); err == nil {
		t.parts = append(t.parts, p)
	}
	return err
}

// checkPart checks a port that comes with so many files, and returns its part without them.
func (t *Taking) checkPart(h *control.Handed, files int) (part, error) {
	switch {
	case h.Port == nil:
		return part{}, errors.New("an empty part")
	case len(t.parts) == vport.MaxPorts:
		return part{}, fmt.Errorf("more than %d ports", vport.MaxPorts)
	}
	p := part{Port: *h.Port, kept: h.Stored}
	if err := checkPort(p.Port); err != nil {
		return p, err
	}
	if least, most := filesHanded(&p.Port); files < least || files > most {
		return p, fmt.Errorf("%w port %s: %d files: want %d to %d", brport.ErrInvalid, p.Name, files, least, most)
	}
	if k := h.Stored; !isStoredID(k.ID) || k.Version < 0 || k.Files < 0 || k.Files > files ||
		k.Session < 0 || k.Session > fdpass.MaxFiles+1 {
		p.kept = control.Stored{}
	}
	return p, nil
}

// Entries keeps addresses of the other switch.
func (t *Taking) Entries(entries []control.FDBEntry) error {
	t.fdb = append(t.fdb, entries...)
	return nil
}

// Begin adds the ports, once the other switch has closed them. An error is about ports that could
// not be added, and are gone; the others are there. A port for which there are too few files stays
// in the store, for a process that may open more.
func (t *Taking) Begin() error {
	var errs []error
	defer t.server.ports.sw.Hold()()
	if t.Listener != nil {
		errs = append(errs, t.Listener.own())
	}
	s := &t.server.ports
	shelves := s.takeShelves(t)
	for i := range t.parts {
		p := &t.parts[i]
		files := p.files
		p.files = nil
		rest := t.rests[p.Name]
		err := s.addResumed(p.Port, files, rest, shelves[i])
		_ = rest.Close() // the port has copies
		delete(t.rests, p.Name)
		if err != nil && !errors.Is(err, errEnded) { // if so, its guest has ended meanwhile
			errs = append(errs, fmt.Errorf("port %s is gone: %w", p.Name, err))
		}
		if err != nil && !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
			s.keeper.drop(shelves[i])
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.relearn(t.fdb)
	s.resuming = false
	all := slices.Collect(maps.Values(s.byName))
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.Name, b.Name) })
	s.keep(all...)
	for _, e := range all {
		if e.changed {
			s.keepSession(e)
		}
	}
	return errors.Join(errs...)
}

// takeShelves takes over what is stored, before a port is added that gets an id. Until Begin has
// all addresses, the ports stay stored as they are.
func (s *ports) takeShelves(t *Taking) []*shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resuming = true
	s.keeper.hasWhole(t.store.Whole)
	s.keeper.forget(t.store.Forget...)
	all := make([]*shelf, len(t.parts))
	for i, p := range t.parts {
		all[i] = s.keeper.adopt(p.kept, p.text, p.session)
	}
	return all
}

// maxRest is more than a rest has: four frames, and a backlog.
const maxRest = 8 << 20

func (t *Taking) rest(h *control.HandedRest, files []*os.File) error {
	most := 2
	if h.Session != nil {
		most = fdpass.MaxFiles
	}
	if len(files) < 1 || len(files) > most || h.Read < 0 || h.Backlog < 0 || h.Read > maxRest || h.Backlog > maxRest {
		return fmt.Errorf("rest of port %.40q: %d files, %d and %d bytes", h.Name, len(files), h.Read, h.Backlog)
	}
	b := make([]byte, h.Read+h.Backlog)
	if _, err := io.ReadFull(io.NewSectionReader(files[0], 0, int64(len(b))), b); err != nil {
		return fmt.Errorf("rest of port %.40q: %w", h.Name, err)
	}
	r := vswitch.Rest{Read: b[:h.Read], Backlog: b[h.Read:], Skip: h.Skip, Link: h.Link}
	own, err := copies(files[1:])
	if err != nil {
		return err
	}
	if len(own) > 0 && (h.Conn || h.Session == nil) {
		r.Conn, own = own[0], own[1:]
	}
	r.Session, r.Files = h.Session, own
	if old, ok := t.rests[h.Name]; ok {
		_ = old.Close()
	}
	t.rests[h.Name] = r
	return nil
}

// adopt makes a Listener of the socket of a switch that is handed over.
func adopt(f *os.File, path string) (*Listener, error) {
	if err := fdpass.Control(f, checkListens); err != nil {
		return nil, err
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

func checkListens(fd int) error {
	err := sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_SEQPACKET, "the listening socket of a switch")
	if err != nil {
		return err
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return errors.Join(errors.New("the socket of the switch does not listen"), err)
	}
	return nil
}

// own makes the kernel tell clients that this process listens (SO_PEERCRED): the last one that has
// called listen(2) does.
func (l *Listener) own() error {
	return fdpass.Control(l.ln, func(fd int) error { return unix.Listen(fd, maxPending) })
}

// maxPending is how many clients may wait to be accepted; the kernel has a limit of its own
// (net.core.somaxconn).
const maxPending = 4096

// Abandon closes the socket for this process, and leaves its file to the one that has it.
func (l *Listener) Abandon() error { return l.ln.Close() }

// redirect makes fd a copy of f, which is a standard file of another process.
func redirect(f *os.File, fd int) error {
	return fdpass.Control(f, func(from int) error { return unix.Dup3(from, fd, 0) })
}
