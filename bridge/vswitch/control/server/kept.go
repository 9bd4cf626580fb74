package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/fdpass"
)

// ErrNotKept is returned by Kept if the store has nothing of a switch, or not all.
var ErrNotKept = errors.New("no switch was kept")

// Kept takes what a process of this user has kept in the store before it was killed: files has the
// store's files by their names, which belong to Kept. KeepIn comes before it. It returns a Taking
// without a Listener, whose Begin comes next. Ports of which something is missing or invalid are
// noted and forgotten; on error, all are.
func (s *Server) Kept(files map[string]*os.File) (*Taking, error) {
	names := slices.Sorted(maps.Keys(files))
	defer func() { fdpass.CloseAll(slices.Collect(maps.Values(files))) }()
	whole := files[wholeName]
	err := ErrNotKept
	if whole != nil {
		text, readErr := readAll(whole, len(keptFormat))
		if err = readErr; err == nil && string(text) != keptFormat {
			err = errors.New("another version has stored the ports")
		}
	}
	if err != nil {
		s.ports.keeper.forget(names...)
		s.ports.keeper.await(forgetPatience) // the files may hold devices
		return nil, err
	}
	t := s.Taking("")
	t.store.Whole = true
	used := map[string]bool{wholeName: true}
	for _, k := range descriptions(files) {
		if err := t.kept(k, files); err != nil {
			s.ports.keeper.note(fmt.Sprintf("a stored port is gone: %v", err))
			continue
		}
		for _, name := range namesOf(t.parts[len(t.parts)-1].kept) {
			used[name] = true
		}
	}
	t.store.Forget = slices.DeleteFunc(names, func(name string) bool { return used[name] })
	return t, nil
}

// readAll reads a file of at most that many bytes.
func readAll(f *os.File, most int) ([]byte, error) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, int64(most)+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), most)
	}
	return text, err
}

// descriptions returns the newest description of each port, sorted by their ids.
func descriptions(files map[string]*os.File) (all []control.Stored) {
	newest := map[int]int{}
	for name := range files {
		if id, version, ok := parseName(name); ok && version > 0 && name == describedBy(id, version) {
			newest[id] = max(newest[id], version)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		all = append(all, control.Stored{ID: id, Version: newest[id]})
	}
	return all
}

// namesOf returns the names of what is stored of a port.
func namesOf(k control.Stored) (names []string) {
	names = append(names, describedBy(k.ID, k.Version))
	for n := range k.Files {
		names = append(names, fileName(k.ID, n))
	}
	return append(names, sessionNames(k.ID, k.Session)...)
}

// kept keeps a port as Part does. It takes its files out of all.
func (t *Taking) kept(k control.Stored, all map[string]*os.File) error {
	text, err := readAll(all[describedBy(k.ID, k.Version)], maxKept)
	var p keptPort
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return err
	}
	if p.Files < 1 || p.Files > fdpass.MaxFiles {
		return fmt.Errorf("%.40q: %d files", p.Port.Name, p.Files)
	}
	var files []*os.File
	for n := range p.Files {
		f := all[fileName(k.ID, n)]
		if f == nil {
			return fmt.Errorf("%.40q: file %d of %d is missing (raise FileDescriptorStoreMax= of the unit)",
				p.Port.Name, n+1, p.Files)
		}
		files = append(files, f)
	}
	k.Files = p.Files
	own, err := t.checkPart(&control.Handed{Port: &p.Port, Stored: k}, len(files))
	if err != nil {
		return err
	}
	own.text, own.files = text, files
	for n := range files {
		delete(all, fileName(k.ID, n))
	}
	r := vswitch.Rest{Link: p.Link, Killed: true}
	sessionErr := t.keptSession(&own, &r, all)
	t.parts = append(t.parts, own)
	if old, ok := t.rests[p.Port.Name]; ok {
		_ = old.Close()
	}
	t.rests[p.Port.Name] = r
	if sessionErr != nil {
		t.server.ports.keeper.note(fmt.Sprintf("port %s: its frontend must connect again: %v", p.Port.Name, sessionErr))
	}
	return t.Entries(p.Static)
}

// keptSession adds the session of a port's frontend to its part and rest, if the store has all of
// it, and takes its files out of all.
func (t *Taking) keptSession(p *part, r *vswitch.Rest, all map[string]*os.File) error {
	id := p.kept.ID
	description := all[sessionName(id, -1)]
	if description == nil {
		return nil
	}
	text, err := readAll(description, maxKept)
	var s keptSession
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil || s.Files < 0 || s.Files > fdpass.MaxFiles {
		return errors.Join(fmt.Errorf("a session with %d files", s.Files), err)
	}
	var own []*os.File
	for n := range s.Files {
		f := all[sessionName(id, n)]
		if f == nil {
			return nil
		}
		own = append(own, f)
	}
	for n := range s.Files {
		delete(all, sessionName(id, n))
	}
	p.session, p.kept.Session = text, 1+s.Files
	if s.Conn && len(own) > 0 {
		r.Conn, own = own[0], own[1:]
	}
	r.Session, r.Files = s.Session, own
	return nil
}
