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
// store's files by their names. The caller closes them. Call KeepIn before it, and Begin of the
// Taking after it, which has no Listener. Ports of which something is missing or invalid are
// noted and forgotten. On error, nothing is taken.
func (s *Server) Kept(files map[string]*os.File) (*Taking, error) {
	whole := files[wholeName]
	if whole == nil {
		return nil, ErrNotKept
	}
	if text, err := readAll(whole, len(keptFormat)); err != nil || string(text) != keptFormat {
		return nil, errors.Join(errors.New("another version has stored the ports"), err)
	}
	t := s.Taking("")
	unused := maps.Clone(files)
	delete(unused, wholeName)
	for name, k := range descriptions(files) {
		err := t.kept(k, files[name], files)
		if err != nil {
			s.ports.note(fmt.Sprintf("a stored port is gone: %v", err))
			continue
		}
		for _, name := range namesOf(t.parts[len(t.parts)-1].kept) {
			delete(unused, name)
		}
	}
	s.ports.forgetNames(slices.Sorted(maps.Keys(unused)))
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

// descriptions returns the newest description of each port.
func descriptions(files map[string]*os.File) map[string]control.Stored {
	newest := map[int]int{}
	for name := range files {
		if k, ok := parseDescribedBy(name); ok {
			newest[k.ID] = max(newest[k.ID], k.Version)
		}
	}
	all := map[string]control.Stored{}
	for id, version := range newest {
		all[describedBy(id, version)] = control.Stored{ID: id, Version: version}
	}
	return all
}

// kept keeps a port as Part does.
func (t *Taking) kept(k control.Stored, description *os.File, all map[string]*os.File) error {
	text, err := readAll(description, maxKept)
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
	if err := t.Part(control.Handed{Port: &p.Port, Stored: k}, files); err != nil {
		return err
	}
	r := vswitch.Rest{Link: p.Link, Killed: true}
	if err := t.keptSession(k.ID, &r, all); err != nil {
		return fmt.Errorf("%.40q: %w", p.Port.Name, err)
	}
	t.rests[p.Port.Name] = r
	return t.Entries(p.Static)
}

// keptSession adds the session of a port's frontend to its rest, if the store has all of it.
func (t *Taking) keptSession(id int, r *vswitch.Rest, all map[string]*os.File) error {
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
	var files []*os.File
	for n := range s.Files {
		f := all[sessionName(id, n)]
		if f == nil {
			return nil
		}
		files = append(files, f)
	}
	own, err := copies(files)
	if err != nil {
		return err
	}
	if s.Conn && len(own) > 0 {
		r.Conn, own = own[0], own[1:]
	}
	r.Session, r.Files = s.Session, own
	t.parts[len(t.parts)-1].kept.Session = 1 + s.Files
	return nil
}
