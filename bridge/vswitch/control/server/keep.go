package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
)

// A Store keeps copies of files for the process that comes after this one, should this one be
// killed. sdnotify.Manager is one.
type Store interface {
	Store(name string, f *os.File) error
	Forget(names ...string) error // returns once the copies are closed
}

// wholeName is the name of a file in a Store that is stored after all ports that a switch begins
// with. Its content is keptFormat.
const (
	wholeName  = "vmnet-whole"
	keptFormat = "1"
)

// fileName is the name of file n of a port, and describedBy that of the file with its keptPort. It
// changes with each version, so that there is always a whole one.
func fileName(id, n int) string          { return fmt.Sprintf("vmnet-%d-%d", id, n) }
func describedBy(id, version int) string { return fmt.Sprintf("vmnet-%d-port-%d", id, version) }
func parseDescribedBy(name string) (k control.Stored, ok bool) {
	n, err := fmt.Sscanf(name, "vmnet-%d-port-%d", &k.ID, &k.Version)
	return k, err == nil && n == 2 && name == describedBy(k.ID, k.Version)
}

// keptPort describes a port in a Store.
type keptPort struct {
	Port   control.Port       `json:"port"`
	Files  int                `json:"files"`
	Link   json.RawMessage    `json:"link,omitempty"` // that of vswitch.Rest
	Static []control.FDBEntry `json:"static,omitempty"`
}

// maxKept limits a keptPort in bytes. It is enough for ten thousand static addresses.
const maxKept = 1 << 20

// KeepIn has the ports kept in a store from now on. has says that the store has what the switch
// begins with: another process has kept it. note is called with what could not be kept.
func (s *Server) KeepIn(store Store, has bool, note func(string)) {
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	s.ports.store, s.ports.whole, s.ports.note, s.info.FDStore = store, has, note, true
}

// keepWhole says in the store that it has all ports.
func (s *ports) keepWhole() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil || s.whole {
		return
	}
	f, err := sealed([]byte(keptFormat))
	if err == nil {
		err = s.store.Store(wholeName, f)
		_ = f.Close()
	}
	if s.whole = err == nil; err != nil {
		s.note(fmt.Sprintf("the ports would end with this process: %v", err))
	}
}

// keep stores a port, or what has changed of it. The caller holds the lock.
func (s *ports) keep(e *entry) {
	if s.store == nil || !e.lasts() {
		return
	}
	err := s.storePort(e)
	if err == nil && e.Kind == control.VhostUser {
		err = s.storeSession(e)
	}
	if err != nil {
		s.note(fmt.Sprintf("port %s would end with this process: %v", e.Name, err))
		s.forget(e)
	}
}

// keptSession describes the session of a port's frontend in a store.
type keptSession struct {
	Session json.RawMessage `json:"session"`
	Files   int             `json:"files"`
	Conn    bool            `json:"conn,omitempty"` // the first one is the connection
}

// storeSession stores what the port's frontend has set up, if anything. A store has no second copy
// of an open file, so the former session is forgotten first. Its description comes last.
func (s *ports) storeSession(e *entry) error {
	r, err := e.in.Session()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := s.forgetSession(e); err != nil || r.Session == nil {
		return err
	}
	files := r.Files
	if r.Conn != nil {
		files = append([]*os.File{r.Conn}, files...)
	}
	text, err := json.Marshal(keptSession{r.Session, len(files), r.Conn != nil})
	if err != nil {
		return err
	}
	description, err := sealed(text)
	if err != nil {
		return err
	}
	defer description.Close()
	e.kept.Session = 1 + len(files)
	for n, f := range append(files, description) {
		if n == len(files) {
			n = -1
		}
		if err := s.store.Store(sessionName(e.kept.ID, n), f); err != nil {
			return err
		}
	}
	return nil
}

// sessionName is the name of a session's file n; that of its description is -1.
func sessionName(id, n int) string { return fmt.Sprintf("vmnet-%d-session-%d", id, n+1) }

func sessionNames(k control.Stored) (names []string) {
	for n := range k.Session {
		names = append(names, sessionName(k.ID, n-1)) // the description first
	}
	return names
}

func (s *ports) forgetSession(e *entry) error {
	names := sessionNames(e.kept)
	if e.kept.Session = 0; len(names) == 0 {
		return nil
	}
	return s.store.Forget(names...)
}

func (s *ports) storePort(e *entry) error {
	link, err := e.in.Followed()
	if err != nil {
		return err
	}
	text, err := json.Marshal(keptPort{e.Port, len(e.files), link, e.static})
	if err != nil || bytes.Equal(text, e.keptText) {
		return err
	}
	if len(text) > maxKept {
		return fmt.Errorf("its description takes %d bytes: want at most %d", len(text), maxKept)
	}
	if e.kept.ID == 0 {
		s.keptID++
		e.kept = control.Stored{ID: s.keptID, Files: len(e.files)}
		if err := s.storeFiles(e); err != nil {
			return err
		}
	}
	f, err := sealed(text)
	if err != nil {
		return err
	}
	defer f.Close()
	e.kept.Version++
	if err := s.store.Store(describedBy(e.kept.ID, e.kept.Version), f); err != nil {
		return err
	}
	e.keptText = text
	if e.kept.Version == 1 {
		return nil
	}
	return s.store.Forget(describedBy(e.kept.ID, e.kept.Version-1))
}

func (s *ports) storeFiles(e *entry) error {
	for i, f := range e.files {
		if i == 0 && e.holder != nil {
			if own := e.holder.again(e.Holder); own != nil {
				defer own.Close()
				f = own
			}
		}
		if err := s.store.Store(fileName(e.kept.ID, i), f); err != nil {
			return err
		}
	}
	return nil
}

// again returns another pidfd of the same process, or nil. A store has no second copy of an open
// file, and a client may pass one pidfd for several ports.
func (h *holder) again(pid int) *os.File {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	ended := true
	if err := h.pidfd.conn.Control(func(fd uintptr) { ended = readable(fd) }); err != nil || ended {
		_ = f.Close() // it may be that of another process
		return nil
	}
	return f
}

// lasts reports whether another process can go on with the port's files alone.
func (e *entry) lasts() bool {
	return len(e.files) > 0 && (!e.isConnected() || len(e.files) > holderFiles(&e.Port)+1)
}

// isConnected reports whether the port has one connection, of which a part of what was read would
// be missing without a journal.
func (e *entry) isConnected() bool {
	if e.Kind != control.Stream && e.Kind != control.VhostUser {
		return false
	}
	f := e.files[holderFiles(&e.Port)]
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return err != nil
	}
	listens := false
	err := fdpass.Control(f, func(fd int) (err error) { listens, err = endpoint.CheckStream(fd); return err })
	return err != nil || !listens
}

// addJournal gives a port that a store will have a journal, if it needs one and has none: a stream
// with one connection, and a port for frontends.
func (s *ports) addJournal(e *entry) error {
	needs := e.Kind == control.VhostUser || e.Kind == control.Stream && e.isConnected()
	s.mu.Lock()
	stores := s.store != nil
	s.mu.Unlock()
	if !stores || !needs || len(e.files) > holderFiles(&e.Port)+1 {
		return nil
	}
	f, err := vswitch.NewJournal()
	if err == nil {
		e.files = append(e.files, f)
	}
	return err
}

// sealed returns a file with that content, which nobody can change.
func sealed(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("vmnet port", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "description of a port")
	_, err = f.Write(content)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// forget removes a port from the store.
func (s *ports) forget(e *entry) {
	s.forgetNames(namesOf(e.kept))
	e.kept, e.keptText = control.Stored{}, nil
}

// namesOf returns the names of what is stored of a port.
func namesOf(k control.Stored) (names []string) {
	if k.ID == 0 {
		return nil
	}
	for n := range k.Files {
		names = append(names, fileName(k.ID, n))
	}
	return append(append(names, describedBy(k.ID, k.Version)), sessionNames(k)...)
}

func (s *ports) forgetNames(names []string) {
	if s.store == nil || len(names) == 0 {
		return
	}
	if err := s.store.Forget(names...); err != nil {
		s.note(fmt.Sprintf("files of ports that are gone are still stored: %v", err))
	}
}
