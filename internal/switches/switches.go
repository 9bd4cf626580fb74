// Package switches asks the userspace switches that run for their ports. It waits for none of them
// for long, and trusts only what each one's user may say.
package switches

import (
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

// With runs f with a client of one switch, by its name or its socket's path, which is closed
// afterwards.
func With(ctx context.Context, name string, f func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, switchWait,
		fmt.Errorf("no answer within %v (is its process stopped or hung?)", switchWait))
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

// Reply is what one switch has said.
type Reply struct {
	Path    string // of its control socket
	Trusted bool   // it is the caller's own, root's, or one that root has started or the caller names
	found   bool   // it is another user's, and nobody has named it
	uid     int    // of the user who runs it
	Ports   []control.Port
	Err     error
}

// Runs returns an error if a switch does not run, or does not answer.
func Runs(name string) error {
	return With(context.Background(), name, func(ctx context.Context, c *control.Client) error {
		_, err := c.Info(ctx)
		return err
	})
}

// TakesFastPath reports whether packet ports of a switch may have a fast path. If the switch does
// not answer, adding the port will say so.
func TakesFastPath(ctx context.Context, name string) (takes bool) {
	_ = With(ctx, name, func(ctx context.Context, c *control.Client) error {
		info, err := c.Info(ctx)
		takes = err == nil && info.FastPath == control.FastPathAuto
		return err
	})
	return takes
}

// Owner returns the user who runs a switch, as the kernel reports it.
func Owner(name string) (uid int, err error) {
	err = With(context.Background(), name, func(_ context.Context, c *control.Client) error {
		_, uid = c.Peer()
		return nil
	})
	return uid, err
}

// An Asker asks switches, and remembers those that have not answered lately. Its zero value is
// ready for use.
type Asker struct{ silence silence }

// Ask asks the switches with these control sockets, and those of these names, for their ports. One
// that does not run has none; one that does not answer has an error, which notice gets too.
func (q *Asker) Ask(ctx context.Context, notice func(format string, args ...any), running []string,
	names ...string,
) []Reply {
	named := unique(pathsOf(names))
	paths := unique(append(named, running...)) // those that NICs are on come first, then the caller's own and root's
	if most := max(maxSwitches, len(named)); len(paths) > most {
		notice("of %d switches %d were not asked", len(paths), len(paths)-most)
		paths = paths[:most]
	}
	all := q.ask(ctx, paths, len(named))
	for _, a := range all {
		if a.Err != nil && q.silence.of(a.Path) == nil {
			q.silence.add(a.Path, a.Err)
			notice("the ports of switch %s are not known: %v", a.Path, a.Err)
		}
	}
	return all
}

// ask asks switches for their ports; the first of them, as many as named, were named. These and the
// caller's and root's are asked apart from other users' switches, of which four at a time are
// asked, one of each user.
func (q *Asker) ask(ctx context.Context, paths []string, named int) []Reply {
	ctx, cancel := context.WithTimeoutCause(ctx, askWait,
		fmt.Errorf("no answer within %v (is its process stopped or hung?)", askWait))
	defer cancel()
	all := make([]Reply, len(paths))
	others := map[int][]*Reply{} // by user
	var meant [][]*Reply
	for i, path := range paths {
		a := &all[i]
		a.Path = path
		if a.Err = q.silence.of(path); a.Err != nil {
			continue
		}
		if uid, ok := control.DirOwner(path); i >= named && ok && !holders.IsTrusted(uid) {
			a.found = true
			others[uid] = append(others[uid], a)
		} else {
			meant = append(meant, []*Reply{a})
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { askGroups(ctx, meant, askWait) })
	wg.Go(func() { askGroups(ctx, slices.Collect(maps.Values(others)), userWait) })
	wg.Wait()
	return all
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

// askGroups asks groups of switches, four groups at a time and those of a group one after the
// other, for at most wait.
func askGroups(ctx context.Context, groups [][]*Reply, wait time.Duration) {
	var wg sync.WaitGroup
	room := make(chan struct{}, askedAtOnce)
	for _, group := range groups {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeoutCause(ctx, wait,
				fmt.Errorf("no answer within %v (is its process stopped or hung?)", wait))
			defer cancel()
			ports := holders.MaxLabels
			for _, a := range group {
				if a.Err = context.Cause(ctx); a.Err == nil {
					ports -= a.ask(ctx, ports)
				}
			}
		})
	}
	wg.Wait()
}

// ask asks a switch for its ports, and returns how many were kept. Of another user's switch, these
// are at most so many, and only NICs of that user's own processes.
func (a *Reply) ask(ctx context.Context, most int) (kept int) {
	dial := control.Dial
	if a.found {
		dial = control.DialFound
	}
	c, err := dial(ctx, a.Path)
	switch {
	case errors.Is(err, control.ErrNotRunning): // a socket that somebody killed has left
		return 0
	case err != nil:
		a.Err = err
		return 0
	}
	defer c.Close()
	_, a.uid = c.Peer()
	a.Trusted = trustsSwitch(os.Geteuid(), a.uid, a.Path)
	a.Err = c.EachPort(ctx, func(p control.Port) error {
		if a.found {
			if _, ok := nic.ParseRecord(p.Label); !ok || p.Holder == 0 || !a.MayHold(p.Holder) {
				return nil
			}
			if len(a.Ports) == most {
				return fmt.Errorf("user %d's switches tell of more than %d NICs", a.uid, holders.MaxLabels)
			}
		}
		a.Ports = append(a.Ports, p)
		return nil
	})
	return len(a.Ports)
}

// trustsSwitch reports whether a caller trusts a switch, by its user and its control socket's path:
// the caller's own, root's, and for root also one that root has started for another user, since
// only root may make a socket in that directory.
func trustsSwitch(caller, uid int, path string) bool {
	return holders.Trusts(caller, uid) || caller == 0 && strings.HasPrefix(path, rundir.System+"/")
}

// MayHold reports whether the switch's claim that a process holds one of its ports is trustworthy:
// any user can run a switch that claims anything about others' guests.
func (a *Reply) MayHold(pid int) bool {
	uid, err := procfd.RealUID(pid)
	return a.mayHoldFor(uid, err)
}

// mayHoldFor decides MayHold by the process's owner, or by the error why the owner is unknown. It
// reports whether the claim is trustworthy: for a process that is not visible here, only that of a
// trusted switch; for a process that has exited, that of none.
func (a *Reply) mayHoldFor(uid int, err error) bool {
	if err != nil {
		return a.Trusted && !errors.Is(err, fs.ErrNotExist)
	}
	return a.Trusted || uid == a.uid
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
