package tapmgr_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// tap makes a tap and sets whether it outlives its queue.
func (h *host) tap(name string, persist bool) *tun.Tap {
	h.Helper()
	tap, err := tun.Create(h.ns, name, false)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = tap.Close() })
	if persist {
		h.persist(tap)
	}
	return tap
}

// persist is what everybody may do who has a queue.
func (h *host) persist(tap *tun.Tap) {
	h.Helper()
	if err := unix.IoctlSetInt(int(tap.Queues()[0].Fd()), unix.TUNSETPERSIST, 1); err != nil {
		h.Fatal(err)
	}
}

func (h *host) link(name string) *rtnl.Link {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	return l
}

// same demands that a link is what it was.
func (h *host) same(was *rtnl.Link) {
	h.Helper()
	text := func(l *rtnl.Link) string {
		return fmt.Sprintf("alias %q, MAC %v, MTU %d, master %d, up %v", l.Alias, l.MAC, l.MTU, l.Master, l.Up)
	}
	if want, got := text(was), text(h.link(was.Name)); got != want {
		h.Errorf("%s: %s; it was %s", was.Name, got, want)
	}
}

func (h *host) owned(want int) {
	h.Helper()
	if n, err := h.Host().Owned(h.Host().Owner); err != nil || n != want {
		h.Errorf("the user owns %d, %v, want %d", n, err, want)
	}
}

// TestATapElsewhereProvesNothing has the queue of a tap of the same name in another netns open,
// and no fd left with which to find out.
func TestATapElsewhereProvesNothing(t *testing.T) {
	h := newUserHost(t)
	h.ip("tuntap", "add", "vm7", "mode", "tap")
	was := h.link("vm7")
	other, err := tun.Create(nstest.NewInUserNS(t), "vm7", false)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	h.Host().Owner = 1000
	up := func() error { return h.Host().IfUp("vm7", "br0", brport.Settings{}, yes) }
	down := func() error { return h.Host().IfDown("vm7") }
	for _, try := range []func() error{up, down, starved(t, up), starved(t, down)} {
		if err := try(); !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EMFILE) {
			t.Errorf("got %v, want a refusal", err)
		}
		h.same(was)
	}
}

// starved runs f with all fds but one taken: enough to list those that are open.
func starved(t *testing.T, f func() error) func() error {
	return func() error {
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		free, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var fillers []int
		for range free { // below it there may be gaps
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fillers = append(fillers, fd)
		}
		limit := unix.Rlimit{Cur: uint64(free) + 1, Max: old.Max}
		_ = unix.Close(free)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				t.Fatal(err)
			}
			for _, fd := range fillers {
				_ = unix.Close(fd)
			}
		}()
		return f()
	}
}

func TestARefusedIfUpChangesNothing(t *testing.T) {
	h := newUserHost(t)
	h.bridge(bridge.Config{Name: "jumbo", MTU: 9000})
	h.ip("tuntap", "add", "vm7", "mode", "tap")
	h.ip("tuntap", "add", "vm8", "mode", "tap")
	h.ip("link", "set", "vm7", "mtu", "9000", "master", "jumbo", "up")
	h.ip("link", "set", "vm8", "mtu", "9000", "up", "alias", "mine")
	on, free, jumbo := h.link("vm7"), h.link("vm8"), h.link("jumbo")
	denied := errors.New("denied")
	calls := 0
	for _, c := range []struct {
		tap, want string
		port      brport.Settings
		allowed   func() error
	}{
		{tap: "vm7", want: "it is a port of jumbo now"},
		{tap: "vm8", want: "VLAN", port: brport.Settings{VLAN: 10}}, // br0 filters none
		{tap: "vm8", want: "denied", allowed: func() error { return denied }},
		{tap: "vm8", want: "denied", port: brport.Settings{Isolated: true}, allowed: func() error {
			if calls++; calls > 1 {
				return denied
			}
			return nil
		}},
	} {
		if c.allowed == nil {
			c.allowed = yes
		}
		if err := h.Host().IfUp(c.tap, "br0", c.port, c.allowed); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.tap, err, c.want)
		}
		for _, l := range []*rtnl.Link{on, free, jumbo} {
			h.same(l)
		}
	}
	if calls != 2 {
		t.Errorf("asked %d times, want before and after", calls)
	}
}

// TestARefusedIfUpLeavesThePort has a tap that is on the bridge already.
func TestARefusedIfUpLeavesThePort(t *testing.T) {
	h := newUserHost(t)
	h.tap("vm7", false)
	if err := h.Host().IfUp("vm7", "br0", brport.Settings{Isolated: true}, yes); err != nil {
		t.Fatal(err)
	}
	was := h.link("vm7")
	calls := 0
	err := h.Host().IfUp("vm7", "br0", brport.Settings{Hairpin: true}, func() error {
		if calls++; calls > 1 {
			return fs.ErrPermission
		}
		return nil
	})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	h.same(was)
	if p := h.link("vm7").Port; p == nil || !p.Isolated || p.Hairpin {
		t.Errorf("port %+v", p)
	}
}

func TestIfDownLeavesOtherBridgesAlone(t *testing.T) {
	h := newUserHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	h.tap("vm7", false)
	if err := h.Host().IfUp("vm7", "br0", brport.Settings{}, yes); err != nil {
		t.Fatal(err)
	}
	h.ip("link", "set", "vm7", "master", "br1")
	was := h.link("vm7")
	if err := h.Host().IfDown("vm7"); err == nil ||
		!strings.Contains(err.Error(), "vm7 is a port of br1 now, not of br0") {
		t.Errorf("got %v", err)
	}
	h.same(was)
}

func TestATapThatWasMadeForAUserCountsUntilItIsGone(t *testing.T) {
	h := newUserHost(t)
	h.Host().Owner = 1000
	tap, err := h.PlainTap("br0", brport.Settings{}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	h.persist(tap)
	asked := 0
	for range 2 {
		if err := h.Host().IfDown(tap.Name); err != nil {
			t.Fatal(err)
		}
		if l := h.link(tap.Name); l.Master != 0 || l.Up || l.Alias == "" {
			t.Errorf("down: %+v", l)
		}
		h.owned(1)
		if err := h.Host().IfDown(tap.Name); err == nil || !strings.Contains(err.Error(), "left alone") {
			t.Errorf("down again: %v", err)
		}
		for range 2 {
			err := h.Host().IfUp(tap.Name, "br0", brport.Settings{}, func() error { asked++; h.owned(1); return nil })
			if err != nil {
				t.Fatal(err)
			}
		}
		h.owned(1)
	}
	if asked != 8 {
		t.Errorf("asked %d times", asked)
	}
	h.Host().Owner = 1001 // who was passed its queue
	if err := h.Host().IfUp(tap.Name, "br0", brport.Settings{}, yes); err != nil {
		t.Error(err)
	}
	h.owned(0)
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	h.Host().Owner = 1000
	h.owned(1)
}

func TestATapThatWasThereIsGivenBack(t *testing.T) {
	h := newUserHost(t)
	h.Host().Owner = 1000
	h.tap("vm7", true)
	if err := h.Host().IfUp("vm7", "br0", brport.Settings{}, func() error { h.owned(1); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := h.Host().IfDown("vm7"); err != nil {
		t.Fatal(err)
	}
	if l := h.link("vm7"); l.Alias != "" || l.Master != 0 {
		t.Errorf("down: %+v", l)
	}
	h.owned(0)
}

// TestPlainTapsLeftOver has two of each kind, one of which a process holds.
func TestPlainTapsLeftOver(t *testing.T) {
	h := newUserHost(t)
	h.Host().Owner = 1000
	made := map[bool]string{} // by whether it is held
	for _, held := range []bool{true, false} {
		tap, err := h.PlainTap("br0", brport.Settings{}, true)
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		h.persist(tap)
		made[held] = tap.Name
		own := h.tap(map[bool]string{true: "own1", false: "own0"}[held], true)
		if err := h.Host().IfUp(own.Name, "br0", brport.Settings{}, yes); err != nil {
			t.Fatal(err)
		}
		// A holder may hide the carrier.
		if err := unix.IoctlSetPointerInt(int(tap.Queues()[0].Fd()), unix.TUNSETCARRIER, 0); err != nil {
			t.Fatal(err)
		}
		if !held {
			if err := errors.Join(tap.Close(), own.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx := h.context(10 * time.Second)
	left := map[string]bool{made[false]: true, "own0": true}
	nics, err := h.ListAll(t.Context(), "")
	if err != nil || len(nics) != 4 {
		t.Errorf("list %+v, %v", nics, err)
	}
	for _, n := range nics {
		if (n.State == nic.LeftOver) != left[n.Interface] || (n.PID == os.Getpid()) == left[n.Interface] {
			t.Errorf("listed as %+v", n)
		}
	}
	checked, err := h.Check(ctx)
	if err != nil || len(checked.Differences) != 2 || checked.NICs != 4 {
		t.Errorf("check %+v, %v", checked, err)
	}
	for _, d := range checked.Differences {
		if !left[d.Interface] || !strings.Contains(d.Found, "left over") {
			t.Errorf("check: %+v", d)
		}
	}
	for _, dry := range []bool{true, false} {
		actions, err := h.Reconcile(ctx, dry)
		if err != nil || len(actions) != 2 || actions[0].Error+actions[1].Error != "" {
			t.Errorf("reconcile %+v, %v", actions, err)
		}
		if dry {
			h.link(made[false])
		}
	}
	h.gone(made[false])
	if l := h.link("own0"); l.Master != 0 || l.Alias != "" || !l.Tun.Persist {
		t.Errorf("the user's own: %+v", l)
	}
	for _, name := range []string{made[true], "own1"} {
		if l := h.link(name); l.Master == 0 {
			t.Errorf("%s, which is held: %+v", name, l)
		}
	}
	if actions, err := h.Reconcile(ctx, false); err != nil || len(actions) != 0 {
		t.Errorf("again: %+v, %v", actions, err)
	}
}
