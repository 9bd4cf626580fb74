package watch

import (
	"context"
	"os"
	"syscall"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/tapmgr/nic"
)

const (
	// listSwitches is how often the control sockets of switches are listed: they are few, and no
	// event of the kernel's tells of them. listRest is the shortest pause as a multiple of the time
	// that listing took, since any user can make many.
	listSwitches = 500 * time.Millisecond
	listRest     = 20
	// rejoins is how often NICs join a switch that has started: it may not answer at once.
	rejoins = 3
)

// switches has NICs join userspace switches again that were started again.
type switches struct {
	// rejoin has all NICs join the switches that have lost them.
	rejoin func(context.Context) ([]nic.Action, error)
	// tried logs the actions of an attempt, and its failures if it is the last one.
	tried func(actions []nic.Action, err error, last bool) (failed bool)
	list  func() ([]string, error) // control.Running
	every time.Duration            // listSwitches

	known map[string]socketID
	due   int // how often NICs are still to join
}

// socketID tells a socket from a later one of the same path.
type socketID struct {
	dev, ino uint64
	made     int64 // in ns since 1970, since inode numbers are used again
}

func newSwitches(rejoin func(context.Context) ([]nic.Action, error),
	tried func([]nic.Action, error, bool) bool,
) *switches {
	return &switches{
		rejoin: rejoin, tried: tried, list: control.Running, every: listSwitches, known: map[string]socketID{},
	}
}

// work has NICs join until ctx ends. At first all switches that run are new.
func (s *switches) work(ctx context.Context) {
	for {
		start := time.Now()
		paths, err := s.list()
		if err == nil && s.news(paths) {
			s.due = rejoins
		}
		pause := max(s.every, listRest*time.Since(start))
		if s.due > 0 {
			s.due--
			actions, err := s.rejoin(ctx)
			if ctx.Err() != nil {
				return
			}
			s.tried(actions, err, s.due == 0)
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// news remembers the sockets, and reports whether there are new ones.
func (s *switches) news(paths []string) (found bool) {
	now := make(map[string]socketID, len(paths))
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil {
			continue
		}
		st := info.Sys().(*syscall.Stat_t)
		id := socketID{st.Dev, st.Ino, st.Ctim.Nano()}
		found = found || s.known[path] != id
		now[path] = id
	}
	s.known = now
	return found
}
