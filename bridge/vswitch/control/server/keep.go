package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
)

// A Store keeps copies of files for the process that comes after this one, should this one be
// killed. sdnotify.Manager is one.
type Store interface {
	// Store keeps a copy of f under a name that it does not have yet. It may have no room, and
	// says nothing then.
	Store(name string, f *os.File) error
	// Forget returns once it has forgotten the names, or with an error after a while. It may
	// close the copies later.
	Forget(names ...string) error
}

// wholeName is the name of a file in a Store that is stored after all ports that a switch begins
// with. Its content is keptFormat.
const (
	wholeName  = "whole"
	keptFormat = "2"
)

// fileName is the name of file n of a port, and describedBy that of the file with its keptPort. No
// two descriptions in a store have one version, so that the newest one of an id is known. The names
// are short: the next process gets all of them in one string of its environment, which may have 128
// KiB (MAX_ARG_STRLEN in execve(2)).
func fileName(id, n int) string          { return fmt.Sprintf("%x.%x", id, n) }
func describedBy(id, version int) string { return fmt.Sprintf("%x-%x", id, version) }

// sessionName is the name of a session's file n; that of its description is -1.
func sessionName(id, n int) string { return fmt.Sprintf("%x_%x", id, n+1) }

// parseName parses such a name. version is 0 unless it is a describedBy.
func parseName(name string) (id, version int, ok bool) {
	at := strings.IndexAny(name, ".-_")
	if at < 0 {
		return 0, 0, false
	}
	i, err := strconv.ParseUint(name[:at], 16, 31)
	n, nErr := strconv.ParseUint(name[at+1:], 16, 31)
	if err != nil || nErr != nil || !isStoredID(int(i)) {
		return 0, 0, false
	}
	if name[at] == '-' {
		version = int(n)
	}
	return int(i), version, true
}

// isStoredID reports whether a keeper may have given a port that id.
func isStoredID(id int) bool { return 1 <= id && id < 1<<20 }

// keptPort describes a port in a Store.
type keptPort struct {
	Port   control.Port       `json:"port"`
	Files  int                `json:"files"`
	Link   json.RawMessage    `json:"link,omitempty"` // that of vswitch.Rest
	Static []control.FDBEntry `json:"static,omitempty"`
}

// maxKept limits a keptPort in bytes. It is enough for ten thousand static addresses.
const maxKept = 1 << 20

// How long to wait for the store, at most.
const (
	forgetPatience = time.Second
	wholePatience  = 2 * time.Second
)

// KeepIn has the ports kept in a store from now on, until Close. The store has room for most files;
// 0 means that this is not known. note is called with what could not be kept, by any goroutine.
func (s *Server) KeepIn(store Store, most int, note func(string)) {
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	s.ports.keeper, s.info.FDStore = newKeeper(store, most, note), true
}

// LeaveStored leaves what is stored as it is, for the next process. Call it before Close, in a
// process that could not go on with what another one has stored.
func (s *Server) LeaveStored() { s.ports.keeper.detach() }

// keep has ports stored, or what has changed of them, and those whose static addresses have changed
// with them. The caller holds the lock.
func (s *ports) keep(changed ...*entry) {
	if s.keeper == nil || s.resuming {
		return
	}
	static := s.statics()
	for _, e := range changed {
		e.static = static[e.Name]
		s.describe(e)
	}
	for _, e := range s.byName {
		if own := static[e.Name]; !slices.Equal(own, e.static) {
			e.static = own
			s.describe(e)
		}
	}
}

// await waits for the store after a request.
func (s *ports) await(most time.Duration) {
	if most == 0 {
		return
	}
	s.mu.Lock()
	k := s.keeper
	s.mu.Unlock()
	k.await(most)
}

func (s *ports) describe(e *entry) {
	if !e.lasts() {
		return
	}
	link, err := e.in.Followed()
	var text []byte
	if err == nil {
		text, err = json.Marshal(keptPort{e.Port, len(e.files), link, e.static})
	}
	if err == nil && len(text) > maxKept {
		err = fmt.Errorf("its description takes %d bytes: want at most %d", len(text), maxKept)
	}
	if err != nil {
		s.keeper.note(fmt.Sprintf("port %s is not stored as it is now: %v", e.Name, err))
		return
	}
	s.keeper.put(e, text)
}

// keptSession describes the session of a port's frontend in a store.
type keptSession struct {
	Session json.RawMessage `json:"session"`
	Files   int             `json:"files"`
	Conn    bool            `json:"conn,omitempty"` // the first one is the connection
}

// keepSession has stored what the port's frontend has set up, if anything. It is called only when
// that has changed: a session that another process has stored is not there yet when its port is.
func (s *ports) keepSession(e *entry) {
	if e.shelf == nil || e.Kind != control.VhostUser {
		return
	}
	r, err := e.in.Session()
	if err == nil && r.Session == nil {
		s.keeper.putSession(e.shelf, &frontSession{files: sessionFiles(r)})
		return
	}
	var text []byte
	files := sessionFiles(r)
	if err == nil {
		text, err = json.Marshal(keptSession{r.Session, len(files), r.Conn != nil})
	}
	if err != nil {
		fdpass.CloseAll(files)
		s.keeper.note(fmt.Sprintf("the frontend of port %s would connect again after this process: %v", e.Name, err))
		return
	}
	s.keeper.putSession(e.shelf, &frontSession{text: text, files: files})
}

func sessionFiles(r vswitch.Rest) []*os.File {
	if r.Conn == nil {
		return r.Files
	}
	return append([]*os.File{r.Conn}, r.Files...)
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
	stores := s.keeper != nil
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

// forget removes a port from the store. Call it before the port's files are closed.
func (s *ports) forget(e *entry) {
	s.keeper.drop(e.shelf)
	e.shelf = nil
}
