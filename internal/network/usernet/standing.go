package usernet

import (
	"slices"
	"sync"

	"vmnet/internal/network/child"
	"vmnet/internal/network/config"
)

// standing is how a network stands, for the goroutine that changes it and for clients that ask.
type standing struct {
	mu       sync.Mutex
	n        *config.Network // as it was made; nil before
	process  *child.Process  // pasta; nil if none runs
	has      way
	args     []string // of pasta
	restarts int
	reserved []string // addresses of guests, as reservationsOf returns them
	failure  string   // of the last pasta that could not be started, or ended by itself
}

func (s *standing) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *standing) pasta() (p *child.Process) {
	s.locked(func() { p = s.process })
	return p
}

func (s *standing) network() (n *config.Network) {
	s.locked(func() { n = s.n })
	return n
}

func (s *standing) way() (running bool, has way, args []string) {
	s.locked(func() { running, has, args = s.process != nil, s.has, s.args })
	return running, has, args
}

func (s *standing) set(p *child.Process, has way, args []string) {
	s.locked(func() {
		s.process, s.has, s.args = p, has, args
		if p != nil {
			s.failure = ""
		}
	})
}

func (s *standing) made(n *config.Network) { s.locked(func() { s.n = n }) }
func (s *standing) failed(err error)       { s.locked(func() { s.failure = err.Error() }) }
func (s *standing) restarted()             { s.locked(func() { s.restarts++ }) }

// same reports whether pasta runs as it should.
func same(running bool, args []string, wanted bool, want []string) bool {
	return running == wanted && (!running || slices.Equal(args, want))
}
