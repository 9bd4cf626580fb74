package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/rundir"
	"vmnet/tapmgr/nic"
)

// runs returns an error if a switch does not run, or does not answer.
func (h *Host) runs(name string) error {
	return WithSwitch(context.Background(), name, func(ctx context.Context, c *control.Client) error {
		_, err := c.Info(ctx)
		return err
	})
}

// ErrNoSwitch is returned for a NIC by a socket whose switch has ended, or has lost it.
var ErrNoSwitch = fmt.Errorf("its switch has no such port any more: %w", fs.ErrNotExist)

const (
	// switchWait bounds one request to a switch that is meant.
	switchWait = 2 * time.Second
	// askWait bounds the asking of all switches for their ports, and silentFor how long one that
	// did not answer is not asked again: others' switches delay nobody.
	askWait   = time.Second
	userWait  = askWait / 4 // for all switches of another user
	silentFor = 5 * time.Second
	// maxSwitches bounds how many are asked: any user may make directories in /tmp.
	maxSwitches = 256
	// askedAtOnce bounds how many are asked at a time: what one may answer takes memory.
	askedAtOnce = 4
)

// WithSwitch runs f with a client of one switch, by its name or its socket's path, which is closed
// afterwards.
func WithSwitch(ctx context.Context, name string, f func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, switchWait,
		fmt.Errorf("no answer within %v (does it stand still?)", switchWait))
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

// switchReply is what one switch has said.
type switchReply struct {
	path    string // of its control socket
	trusted bool   // it is the caller's own, root's, or one that root has started or the caller names
	found   bool   // it is another user's, and nobody has named it
	uid     int    // of the user who runs it
	ports   []control.Port
	err     error
}

// askSwitches asks the switches that run, and those of these names, for their ports. One that does
// not run has none; one that does not answer has an error, which Notice gets too.
func (h *Host) askSwitches(ctx context.Context, names ...string) []switchReply {
	if h.Switches == nil {
		return nil
	}
	paths, ok, err := h.Switches()
	if !ok {
		return nil
	}
	if err != nil {
		h.notice("the switches were not asked: %v", err)
	}
	named := unique(pathsOf(names))
	paths = unique(append(named, paths...)) // those that NICs are on come first, then the caller's own and root's
	if len(paths) > maxSwitches {
		h.notice("of %d switches %d were not asked", len(paths), len(paths)-maxSwitches)
		paths = paths[:maxSwitches]
	}
	return h.askAll(ctx, paths, len(named))
}

// pathsOf returns the control sockets of switches of these names.
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
func (h *Host) askNamed(ctx context.Context, names ...string) []switchReply {
	paths := unique(pathsOf(names))
	return h.askAll(ctx, paths, len(paths))
}

// askAll asks switches for their ports; the first of them, as many as named, were named. These and
// the caller's and root's are asked apart from other users' switches, of which four at a time are
// asked, one of each user.
func (h *Host) askAll(ctx context.Context, paths []string, named int) []switchReply {
	ctx, cancel := context.WithTimeoutCause(ctx, askWait,
		fmt.Errorf("no answer within %v (does it stand still?)", askWait))
	defer cancel()
	all := make([]switchReply, len(paths))
	others := map[int][]*switchReply{} // by user
	var meant [][]*switchReply
	for i, path := range paths {
		a := &all[i]
		a.path = path
		if a.err = h.silence.of(path); a.err != nil {
			continue
		}
		if uid, ok := control.DirOwner(path); i >= named && ok && !holders.IsTrusted(uid) {
			a.found = true
			others[uid] = append(others[uid], a)
		} else {
			meant = append(meant, []*switchReply{a})
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { askGroups(ctx, meant, askWait) })
	wg.Go(func() { askGroups(ctx, slices.Collect(maps.Values(others)), userWait) })
	wg.Wait()
	for _, a := range all {
		if a.err != nil && h.silence.of(a.path) == nil {
			h.silence.add(a.path, a.err)
			h.notice("switch %s was not asked: %v", a.path, a.err)
		}
	}
	return all
}

// askGroups asks groups of switches, four groups at a time and those of a group one after the
// other, for at most wait.
func askGroups(ctx context.Context, groups [][]*switchReply, wait time.Duration) {
	var wg sync.WaitGroup
	room := make(chan struct{}, askedAtOnce)
	for _, group := range groups {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeoutCause(ctx, wait,
				fmt.Errorf("no answer within %v (does it stand still?)", wait))
			defer cancel()
			ports := holders.MaxLabels
			for _, a := range group {
				if a.err = context.Cause(ctx); a.err == nil {
					ports -= a.ask(ctx, ports)
				}
			}
		})
	}
	wg.Wait()
}

// ask asks a switch for its ports, and returns how many were kept. Of another user's switch, these
// are at most so many, and only NICs of that user's own processes.
func (a *switchReply) ask(ctx context.Context, most int) (kept int) {
	dial := control.Dial
	if a.found {
		dial = control.DialFound
	}
	c, err := dial(ctx, a.path)
	switch {
	case errors.Is(err, control.ErrNotRunning): // a socket that somebody killed has left
		return 0
	case err != nil:
		a.err = err
		return 0
	}
	defer c.Close()
	_, a.uid = c.Peer()
	a.trusted = trustsSwitch(os.Geteuid(), a.uid, a.path)
	a.err = c.EachPort(ctx, func(p control.Port) error {
		if a.found {
			if _, ok := nic.ParseRecord(p.Label); !ok || p.Holder == 0 || !a.mayHold(p.Holder) {
				return nil
			}
			if len(a.ports) == most {
				return fmt.Errorf("user %d's switches tell of more than %d NICs", a.uid, holders.MaxLabels)
			}
		}
		a.ports = append(a.ports, p)
		return nil
	})
	return len(a.ports)
}

// trustsSwitch reports whether a caller trusts a switch, by its user and its control socket's path:
// the caller's own, root's, and for root also one that root has started for another user, since
// only root may make a socket in that directory.
func trustsSwitch(caller, uid int, path string) bool {
	return holders.Trusts(caller, uid) || caller == 0 && strings.HasPrefix(path, rundir.System+"/")
}

// mayHold reports whether the switch's claim that a process holds one of its ports is trustworthy:
// any user can run a switch that claims anything about others' guests.
func (a *switchReply) mayHold(pid int) bool {
	uid, err := procfd.RealUID(pid)
	return a.mayHoldFor(uid, err)
}

// mayHoldFor decides mayHold by the process's owner, or by the error why the owner is unknown. It
// reports whether the claim is trustworthy: for a process that is not visible here, only that of a
// trusted switch; for a process that has exited, that of none.
func (a *switchReply) mayHoldFor(uid int, err error) bool {
	if err != nil {
		return a.trusted && !errors.Is(err, fs.ErrNotExist)
	}
	return a.trusted || uid == a.uid
}

// silence remembers which switches have not answered lately.
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

// SwitchPort is the port that a switch has, or should have, for a NIC.
type SwitchPort struct {
	Path string        // of the switch's control socket; empty if that is not known
	Port *control.Port // nil where it has none
	Err  error         // why it could not be asked
}

// ErrNotAsked is why the port of a NIC is unknown if its switch was not asked.
var ErrNotAsked = errors.New("its switch was not asked")

// switchPortOf finds the port of a NIC that belongs on a switch among the replies. The switch that
// the NIC's record names is trusted regardless of its user: the user who attached the NIC chose it.
// Of two guests of one name each has the port that it holds. A port keeps its name when its tap is
// renamed.
func switchPortOf(dev *Device, all []switchReply) SwitchPort {
	return switchPortGiven(now(), dev, all)
}

func switchPortGiven(m moment, dev *Device, all []switchReply) SwitchPort {
	path, err := control.Path(dev.Want.Source)
	s := SwitchPort{Path: path, Err: cmp.Or(err, ErrNotAsked)}
	for _, a := range all {
		if a.path != path {
			continue
		}
		s.Err = a.err
		for i, p := range a.ports {
			l, ok := nic.ParseRecord(p.Label)
			if ok && l.VM == dev.Want.VM && l.NIC == dev.Want.NIC && dev.mayHave(m, p) &&
				(s.Port == nil || p.Name == dev.Name) {
				s.Port = &a.ports[i]
			}
		}
	}
	return s
}

// mayHave reports whether a port with the NIC's label may be its own, and not that of another guest
// of that name.
func (dev *Device) mayHave(m moment, p control.Port) bool {
	pid := dev.vmmPID(m)
	return pid == p.Holder || pid == 0 && !dev.IsUntrusted()
}

// ReadSwitchPort asks the switch that the NIC's record names for its port.
func (h *Host) ReadSwitchPort(ctx context.Context, dev *Device) SwitchPort {
	return switchPortOf(dev, h.askNamed(ctx, dev.Want.Source))
}
