package vhostuser

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"vmnet/internal/vhostuser/guestmem"
)

// A frontend may change memory freely messagesFree times, and then once every messagesPause: each
// change makes all processors of this process flush their translations. The same holds for
// announcements, which all other ports get.
const (
	messagesFree  = 64
	messagesPause = 10 * time.Millisecond
)

// slow counts messages of a kind, and waits if there were many.
func slow(count *int) {
	if *count++; *count > messagesFree {
		time.Sleep(messagesPause)
	}
}

func (s *session) setMemory(m *message) error {
	regions, err := m.regions()
	if err != nil {
		return err
	}
	slow(&s.tables)
	next := guestmem.New()
	var kept []keptArea
	for i, r := range regions {
		a, err := guestmem.Map(r, m.fds[i])
		if err == nil {
			next = next.With(a)
			var k keptArea
			if k, err = newArea(r, m.fds[i]); err == nil {
				kept = append(kept, k)
			}
		}
		if err != nil {
			next.Unmap()
			closeAreas(kept)
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next, err = next.Logged(s.mem.Log()); err != nil {
		next.Unmap()
		closeAreas(kept)
		return err
	}
	old := s.mem
	s.remember(next)
	old.Unmap()
	closeAreas(s.areas)
	s.areas = kept
	return nil
}

func (s *session) addRegion(m *message) error {
	r, err := m.region()
	if err != nil {
		return err
	}
	if len(m.fds) != 1 {
		return fmt.Errorf("%d files: want 1", len(m.fds))
	}
	slow(&s.tables)
	if s.mem.Len() == guestmem.MaxAreas {
		return fmt.Errorf("more than %d regions", guestmem.MaxAreas)
	}
	a, err := guestmem.Map(r, m.fds[0])
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.mem.With(a)
	err = next.CheckLog()
	var kept keptArea
	if err == nil {
		kept, err = newArea(r, m.fds[0])
	}
	if err != nil {
		return errors.Join(err, a.Unmap())
	}
	s.areas = append(s.areas, kept)
	s.remember(next)
	return nil
}

func (s *session) removeRegion(m *message) error {
	r, err := m.region()
	if err != nil {
		return err
	}
	slow(&s.tables)
	s.mu.Lock()
	defer s.mu.Unlock()
	next, area := s.mem.Without(r)
	if area == nil {
		return fmt.Errorf("there is no region at %#x", r.Guest)
	}
	s.remember(next)
	s.areas = slices.DeleteFunc(s.areas, func(a keptArea) bool {
		same := a.Guest == r.Guest && a.Size == r.Size && a.User == r.User
		if same {
			_ = a.file.Close()
		}
		return same
	})
	return area.Unmap()
}
