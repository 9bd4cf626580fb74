package server

import (
	"bytes"
	"os"

	"vmnet/internal/kernel/fdpass"
)

// A frontSession is what a port's frontend has set up, with files that it owns. Without a
// description, there is none.
type frontSession struct {
	text  []byte
	files []*os.File
	at    int  // the next file to store
	busy  bool // its files are in use
}

func (p *frontSession) close() {
	if p != nil && !p.busy {
		fdpass.CloseAll(p.files)
		p.files = nil
	}
}

// shelvedSession is what a store has of a port's session, and is to have.
type shelvedSession struct {
	next   *frontSession // nil if that is as it is to be
	has    []byte        // the description in the store; nil if it is not known, or there is none
	stored int           // files in the store, with the description
}

// set sets what is to be stored next.
func (s *shelvedSession) set(p *frontSession) {
	s.next.close()
	s.next = p
}

func sessionNames(id, stored int) (names []string) {
	for n := range stored {
		names = append(names, sessionName(id, n-1)) // the description first
	}
	return names
}

// putSession has the session of a port stored, if it is another one. It takes ownership of it.
func (k *keeper) putSession(sh *shelf, p *frontSession) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &sh.session
	latest := s.has
	if s.next != nil {
		latest = s.next.text
	}
	if bytes.Equal(latest, p.text) && (p.text != nil || s.next != nil || s.stored == 0) {
		p.close()
		return
	}
	s.set(p)
	if !sh.queued {
		sh.queued, k.queue = true, append(k.queue, sh)
	}
	k.work()
}

// advanceSession stores the next file of a session, and its description last. A store has no second
// copy of an open file, so the former session is forgotten first.
func (k *keeper) advanceSession(sh *shelf) error {
	s, p := &sh.session, sh.session.next
	switch {
	case p.at == 0 && s.stored > 0:
		k.stale = append(k.stale, sessionNames(sh.id, s.stored)...)
		s.stored, s.has = 0, nil
		return nil
	case p.text == nil:
		s.set(nil)
		return nil
	case len(k.stale) > 0: // the store has not confirmed that it has forgotten it
		k.queue, k.later = k.queue[1:], append(k.later, sh)
		return nil
	case p.at == 0 && !k.hasRoomFor(sh, 1+len(p.files)):
		return nil
	}
	s.stored, p.busy = 1+len(p.files), true
	err := k.outside(func() error {
		if p.at < len(p.files) {
			return k.store.Store(sessionName(sh.id, p.at), p.files[p.at])
		}
		return k.storeText(sessionName(sh.id, -1), p.text)
	})
	p.busy = false
	if k.shelves[sh.id] != sh || s.next != p { // it was replaced meanwhile
		p.close()
		return nil
	}
	if err != nil {
		return err
	}
	if p.at++; p.at > len(p.files) {
		s.has = p.text
		s.set(nil)
	}
	return nil
}
