package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/procfd"
	"vmnet/internal/rundir"
)

const (
	// switchWait bounds one request to a switch that is meant.
	switchWait = 2 * time.Second
	// askWait bounds the asking of all switches for their ports, and silentFor how long one that did not answer is not
	// asked again: others' switches delay nobody.
	askWait   = 500 * time.Millisecond
	silentFor = 5 * time.Second
	// maxSwitches bounds how many are asked: anybody may make folders in /tmp.
	maxSwitches = 256
)

// withSwitch asks one switch, by its name or its socket's path.
func withSwitch(ctx context.Context, name string, f func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, switchWait, fmt.Errorf("no answer within %v (does it stand still?)", switchWait))
	defer cancel()
	c, err := control.Dial(ctx, name)
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("%w (vmnet switch run %s; vmnet switch list shows those that run)", err, name)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// asked is what one switch has said.
type asked struct {
	path    string // of its control socket
	trusted bool   // it is the caller's own, root's, or one that root has started or the caller names
	uid     int    // of the user who runs it
	ports   []control.Port
	err     error
}

// askSwitches asks the switches that run, and those of these names, for their ports. One that nobody runs has
// none; one that does not answer has an error, of which Notice is told.
func (m *Manager) askSwitches(ctx context.Context, names ...string) []asked {
	if m.Switches == nil {
		return nil
	}
	paths, err := m.Switches()
	if err != nil {
		m.notice("the switches were not asked: %v", err)
	}
	paths = unique(append(pathsOf(names), paths...)) // those that NICs are on come first, then the caller's own and root's
	if len(paths) > maxSwitches {
		m.notice("of %d switches %d were not asked", len(paths), len(paths)-maxSwitches)
		paths = paths[:maxSwitches]
	}
	return m.askAll(ctx, paths)
}

// pathsOf are the control sockets of switches of these names.
func pathsOf(names []string) (paths []string) {
	for _, name := range names {
		if path, err := control.Path(name); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// unique leaves the first of each path.
func unique(paths []string) (first []string) {
	seen := map[string]bool{}
	for _, path := range paths {
		if !seen[path] {
			seen[path] = true
			first = append(first, path)
		}
	}
	return first
}

// askNamed asks these switches and no others.
func (m *Manager) askNamed(ctx context.Context, names ...string) []asked {
	return m.askAll(ctx, unique(pathsOf(names)))
}

func (m *Manager) askAll(ctx context.Context, paths []string) []asked {
	ctx, cancel := context.WithTimeoutCause(ctx, askWait, fmt.Errorf("no answer within %v (does it stand still?)", askWait))
	defer cancel()
	all := make([]asked, len(paths))
	var wg sync.WaitGroup
	for i, path := range paths {
		all[i].path = path
		if all[i].err = m.silence.of(path); all[i].err == nil {
			wg.Go(func() { all[i].ask(ctx) })
		}
	}
	wg.Wait()
	for _, a := range all {
		if a.err != nil && m.silence.of(a.path) == nil {
			m.silence.add(a.path, a.err)
			m.notice("switch %s was not asked: %v", a.path, a.err)
		}
	}
	return all
}

func (a *asked) ask(ctx context.Context) {
	c, err := control.Dial(ctx, a.path)
	switch {
	case errors.Is(err, control.ErrNotRunning): // a socket that somebody killed has left
		return
	case err != nil:
		a.err = err
		return
	}
	defer c.Close()
	_, a.uid = c.Peer()
	self := os.Geteuid()
	a.trusted = a.uid == 0 || a.uid == self || self == 0 && strings.HasPrefix(a.path, rundir.System+"/")
	a.ports, a.err = c.Ports(ctx)
}

// mayHold tells whether the switch can be believed that a process holds a port of it: anybody can run one that says
// anything of others' guests.
func (a *asked) mayHold(pid int) bool {
	uid, err := procfd.RealUID(pid)
	if err != nil {
		return a.trusted && !errors.Is(err, fs.ErrNotExist)
	}
	return a.trusted || uid == a.uid
}

// silence remembers which switches did not answer a moment ago.
type silence struct {
	mu    sync.Mutex
	since map[string]time.Time
	why   map[string]error
}

func (s *silence) of(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.since[path]) > silentFor {
		return nil
	}
	return s.why[path]
}

func (s *silence) add(path string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since == nil || len(s.since) > maxSwitches {
		s.since, s.why = map[string]time.Time{}, map[string]error{}
	}
	s.since[path], s.why[path] = time.Now(), why
}

// seat is what a switch has of a NIC, or should have.
type seat struct {
	path string        // of the switch's control socket; empty where that was not looked for
	port *control.Port // nil where it has none
	err  error         // why it could not be asked
}

var errNotAsked = errors.New("its switch was not asked")

// seatOf is the seat of a NIC that belongs on a switch, among what was asked. The switch that the NIC's record names is believed,
// whoever runs it: who attached the NIC chose it. Of two guests of one name each has the port that it holds. A port keeps
// its name when its tap is renamed.
func seatOf(o *ours, all []asked) seat {
	path, err := control.Path(o.want.Source)
	s := seat{path: path, err: cmp.Or(err, errNotAsked)}
	for _, a := range all {
		if a.path != path {
			continue
		}
		s.err = a.err
		for i, p := range a.ports {
			l, ok := parseAlias(p.Label)
			if ok && l.VM == o.want.VM && l.NIC == o.want.NIC && o.mayHave(p) && (s.port == nil || p.Name == o.Name) {
				s.port = &a.ports[i]
			}
		}
	}
	return s
}

// mayHave tells whether a port with the NIC's label can be its own, and not that of another guest of that name.
func (o *ours) mayHave(p control.Port) bool {
	pid := o.vmm()
	return pid == p.Holder || pid == 0 && !o.isOthers()
}
