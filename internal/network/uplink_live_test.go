package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/network/config"
	"vmnet/internal/network/managers"
	"vmnet/internal/network/uplink"
	"vmnet/internal/nstest"
	"vmnet/step"
)

// newLAN is a host with a second cable, from lan0 to a LAN without addresses of the host.
func newLAN(tb testing.TB) *h {
	x := newHost(tb)
	x.cable(x.host, "lan0", "", "", x.wan, "e1", "192.0.2.1/24", "2001:db8:1::1/64")
	return x
}

func onLAN(device string) *config.Network {
	return &config.Network{Name: "lan", Domain: "lan.internal", Uplink: &config.Uplink{Device: device}}
}

// TestLiveUplink: guests are on the LAN, with an own DHCP server where the file says so, and
// nothing is left.
func TestLiveUplink(t *testing.T) {
	x := newLAN(t)
	before := x.left()
	n := onLAN("lan0")
	n.DHCP, n.Subnet = true, netip.MustParsePrefix("192.0.2.0/24")
	n.Uplink.Range = config.Range{First: netip.MustParseAddr("192.0.2.200"), Last: netip.MustParseAddr("192.0.2.210")}
	n.Uplink.Router = netip.MustParseAddr("192.0.2.1")
	x.create(n)
	x.consistent()
	if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || changed {
		t.Errorf("a second apply: %v, changed %v", err, changed)
	}
	infos, err := x.m.List(x.ctx())
	if err != nil || len(infos) != 1 || infos[0].State != StateUp || len(infos[0].Ports) > 0 ||
		infos[0].Uplink != "lan0" {
		t.Errorf("%+v, %v", infos, err)
	}
	g := x.guest("lan", webMAC)
	told, err := g.dhcp("web")
	if err != nil || !strings.HasPrefix(told, "lease 192.0.2.2") || !strings.HasSuffix(told,
		" router 192.0.2.1 dns 192.0.2.200 domain lan.internal") {
		t.Errorf("%q, %v", told, err)
	}
	x.answers(x.wan, ":7")
	x.wants("the LAN", x.ask(g.ns, "192.0.2.1:7"), g.ip)
	x.answers(g.ns, ":80")
	x.wants("from the LAN", x.ask(x.wan, g.ip+":80"), "192.0.2.1")
	if err := x.m.Delete(x.ctx(), "lan", false); !errors.Is(err, ErrGuests) || strings.Contains(err.Error(), "lan0") {
		t.Errorf("delete with guests: %v", err)
	}
	x.ip(x.host, "link", "del", "g1")
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	x.ip(x.host, "link", "del", "lan0")
	x.wants("left", x.left(), strings.Join(withoutLines(before, "lan0@"), ""))
}

func withoutLines(text, with string) (kept []string) {
	for line := range strings.Lines(text) {
		if !strings.Contains(line, with) {
			kept = append(kept, line)
		}
	}
	return kept
}

// TestLiveUplinkComesLate: the unit waits for an interface that is not there yet.
func TestLiveUplinkComesLate(t *testing.T) {
	x := newHost(t)
	if err := x.m.Dir.Write(onLAN("late0")); err != nil {
		t.Fatal(err)
	}
	found := make(chan struct{})
	go func() {
		defer close(found)
		x.m.AwaitUplink(x.ctx(), "lan")
	}()
	select {
	case <-found:
		t.Error("it does not wait")
	case <-time.After(300 * time.Millisecond):
	}
	x.ip(x.host, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
	select {
	case <-found:
	case <-time.After(patience):
		t.Fatal("it is not found")
	}
	if _, _, err := x.m.ApplyUnlocked(x.ctx(), "lan"); err != nil {
		t.Error(err)
	}
	x.deleted("lan")
	x.consistent()
}

// TestLiveLANSubnet: the subnet of a DHCP server is the one that the host has on the uplink.
func TestLiveLANSubnet(t *testing.T) {
	x := newHost(t)
	w := moving()
	w.DHCP = true
	w.Uplink.Range, _ = config.ParseRange("203.0.113.200-203.0.113.210")
	x.m.Run = func(context.Context, []step.Step) error { return nil }
	if err := x.m.Create(x.ctx(), w); err != nil || w.Subnet.String() != "203.0.113.0/24" {
		t.Errorf("%s, %v", w.Subnet, err)
	}
	w.Uplink.Range, _ = config.ParseRange("203.0.114.200-203.0.114.210")
	w.Subnet = netip.Prefix{}
	const want = "needs the LAN's subnet"
	if err := x.m.Create(x.ctx(), w); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
}

// TestLiveUplinkRefused: what is somebody's is not taken, and the error names owner and cure.
func TestLiveUplinkRefused(t *testing.T) {
	x := newLAN(t)
	for _, line := range []string{
		"link add br0 type bridge", "link add p0 type veth peer name p1", "link set p0 master br0",
		"link add d0 type veth peer name d1",
	} {
		x.ip(x.host, strings.Fields(line)...)
	}
	x.ip(x.host, "link", "set", "d0", "alias", "vmnet vm=P2 nic=net0")
	before := x.left()
	for device, want := range map[string]string{
		"up0": "uplink up0: it is in use: the host has 203.0.113.2/24, 2001:db8:f::2/64 there, which do not work on a " +
			"port of a bridge (--move-address moves them to the bridge)",
		"p0": "uplink p0: it is in use: it is a port of bridge br0 (vmnet attach --bridge br0 puts guests there; " +
			"uplink p0.VLAN is one of its VLANs)",
		"br0":       "uplink br0: it is in use: it is a bridge (vmnet attach --bridge br0 puts guests there",
		"lo":        "uplink lo: it is the host's loopback interface",
		"d0":        "it is the NIC of a guest",
		"nosuch":    "uplink nosuch: there is no interface nosuch (ip link shows those that there are)",
		"nosuch.10": "uplink nosuch.10: there is no interface nosuch (",
	} {
		err := x.m.Create(x.ctx(), Wanted{Network: onLAN(device)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", device, err, want)
		}
	}
	x.wants("left", x.left(), before)
}

// guarded gives the manager a guard in a goroutine, and returns how to wait for its end.
func (x *h) guarded(confirm time.Duration) (ended func()) {
	var done []chan error
	x.m.Confirm = confirm
	x.m.Guard = func(_ context.Context, name string) error {
		m := &Manager{NS: x.m.NS, Dir: x.m.Dir, State: x.m.State, Service: x.m.Service}
		if err := m.Open(); err != nil {
			return err
		}
		ready, end := make(chan struct{}), make(chan error, 1)
		done = append(done, end)
		go func() {
			defer m.Close()
			_, err := m.AwaitConfirm(context.Background(), name, func() { close(ready) })
			end <- err
		}()
		select {
		case <-ready:
			return nil
		case err := <-end:
			end <- err
			return fmt.Errorf("the guard has ended: %w", err)
		}
	}
	ended = func() {
		x.Helper()
		for _, d := range done {
			select {
			case err := <-d:
				if err != nil {
					x.Errorf("guard: %v", err)
				}
			case <-time.After(patience):
				x.Fatal("the guard does not end")
			}
		}
		done = nil
	}
	x.Cleanup(ended)
	return ended
}

// volatile are lifetimes, and what the kernel says of neighbors.
var volatile = regexp.MustCompile(`[0-9]+sec|(REACHABLE|STALE|DELAY|PROBE) *$`)

// hostSide is what the host has on an interface.
func (x *h) hostSide(link string) string {
	x.Helper()
	var lines []string
	for _, what := range []string{
		"-o addr show dev " + link, "route show table all", "-6 route show table all", "rule", "-6 rule",
	} {
		for line := range strings.Lines(x.ip(x.host, strings.Fields(what)...)) {
			others := link != "lan" && strings.Contains(line, " dev lan ") // the bridge's own
			if !others && !strings.HasPrefix(line, "anycast") && !strings.HasPrefix(line, "multicast ff00") {
				lines = append(lines, volatile.ReplaceAllString(line, ""))
			}
		}
	}
	slices.Sort(lines)
	for line := range strings.Lines(x.ip(x.host, "-d", "-o", "link", "show", "dev", link)) {
		mode, _, _ := strings.Cut(line[strings.Index(line, "addrgenmode"):], " numtx")
		mac := strings.Fields(line[strings.Index(line, "link/ether"):])[1]
		lines = append(lines, strings.TrimSpace(mode)+"\n", mac+"\n")
	}
	return strings.Join(lines, "")
}

// hasAgain reports a host that does not have on its interface what it had.
func (x *h) hasAgain(when, host string) {
	x.Helper()
	x.becomes("on the interface "+when, host, func() string { return x.hostSide("up0") })
}

// becomes waits until something is so: the kernel makes the routes to its IPv6 addresses a little
// later.
func (x *h) becomes(what, want string, is func() string) {
	x.Helper()
	got := ""
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if got = is(); got == want {
			return
		}
		time.Sleep(10 * time.Millisecond) // not a wait: a poll
	}
	x.wants(what, got, want)
}

func moving() Wanted {
	n := onLAN("up0")
	n.Uplink.Move = config.Confirmed
	return Wanted{Network: n}
}

// settled waits until no address of the host is checked for duplicates.
func (x *h) settled() {
	x.Helper()
	nstest.Eventually(x, patience, "addresses are not tentative", func() bool {
		// The kernel adds the link-local address once it has seen the carrier.
		return strings.Contains(x.ip(x.host, "-6", "addr", "show", "dev", "up0"), "fe80:") &&
			!strings.Contains(x.ip(x.host, "-6", "addr"), "tentative")
	})
}

// TestLiveMoveConfirmed: the host's addresses move with a TCP connection over them, stay when that
// is confirmed, and come back when the network is deleted.
func TestLiveMoveConfirmed(t *testing.T) {
	x := newHost(t)
	x.ip(x.host, "route", "add", "10.4.0.0/16", "via", wanIP, "table", "100")
	x.ip(x.host, "rule", "add", "iif", "up0", "lookup", "100")
	x.settled()
	ended := x.guarded(time.Minute)
	before, host := x.left(), x.hostSide("up0")
	echo := x.stream(wanIP)
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	x.becomes("on the bridge", byName(host), func() string {
		return byName(strings.ReplaceAll(x.hostSide("lan"), "lan", "up0"))
	})
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) > 0 || len(c.Notices) != 1 {
		t.Errorf("before it is confirmed: %+v, %v", c, err)
	}
	file := func() string {
		text, err := os.ReadFile(x.m.Dir.Path("lan"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if !strings.Contains(file(), "\nmove-address: unconfirmed\n") {
		t.Errorf("the file says %s", file())
	}
	if changed, err := x.m.ConfirmMove(x.ctx(), "lan"); err != nil || !changed {
		t.Errorf("confirm: %v, %v", changed, err)
	}
	if changed, err := x.m.ConfirmMove(x.ctx(), "lan"); err != nil || changed {
		t.Errorf("confirm twice: %v, %v", changed, err)
	}
	ended()
	if !strings.Contains(file(), "\nmove-address: true\n") {
		t.Errorf("the file says %s", file())
	}
	x.m.Confirm = 0
	x.consistent()
	if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || changed {
		t.Errorf("a second apply: %v, changed %v", err, changed)
	}
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	x.wants("left", x.left(), before)
	x.hasAgain("again", host)
	if gap := echo(); gap > time.Second {
		t.Errorf("the connection stood still for %v", gap)
	}
}

// linkNumber begins a line about an address.
var linkNumber = regexp.MustCompile(`(?m)^[0-9]+: `)

// byName leaves the numbers of links out.
func byName(text string) string {
	lines := slices.Sorted(strings.Lines(linkNumber.ReplaceAllString(text, "")))
	return strings.Join(lines, "")
}

// stream keeps a TCP connection from the host busy. The function returned ends it, and returns the
// longest time without an answer.
func (x *h) stream(to string) (end func() time.Duration) {
	x.Helper()
	x.echoes(x.wan, ":9")
	c, err := x.dial(x.host, dialTimeout, "tcp", to+":9")
	if err != nil {
		x.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	var longest time.Duration
	go func() {
		b := make([]byte, 1000)
		for {
			select {
			case <-stop:
				done <- c.Close()
				return
			default:
			}
			sent := time.Now()
			_ = c.SetDeadline(sent.Add(patience))
			_, err := c.Write(b)
			if err == nil {
				_, err = c.Read(b)
			}
			if err != nil {
				done <- errors.Join(err, c.Close())
				return
			}
			longest = max(longest, time.Since(sent))
		}
	}()
	return func() time.Duration {
		x.Helper()
		close(stop)
		if err := <-done; err != nil {
			x.Errorf("the connection: %v", err)
		}
		x.Logf("longest gap %v", longest)
		return longest
	}
}

// TestLiveMoveTakenBack: a move that nobody confirms is taken back, and of the network nothing is
// left. Then it is too late.
func TestLiveMoveTakenBack(t *testing.T) {
	x := newHost(t)
	x.settled()
	ended := x.guarded(time.Second)
	before, host := x.left(), x.hostSide("up0")
	echo := x.stream(wanIP)
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	ended()
	x.wants("left", x.left(), before)
	x.hasAgain("again", host)
	if _, err := x.m.ConfirmMove(x.ctx(), "lan"); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "is taken back") {
		t.Errorf("confirm too late: %v", err)
	}
	echo()
}

// TestLiveMoveTakenBackUnderGuests: guests keep their bridge, without its uplink, and the move can
// be made again.
func TestLiveMoveTakenBackUnderGuests(t *testing.T) {
	x := newHost(t)
	x.settled()
	ended := x.guarded(2 * time.Second)
	host := x.hostSide("up0")
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	x.guest("lan", webMAC)
	ended()
	x.hasAgain("again", host)
	if _, err := x.m.ConfirmMove(x.ctx(), "lan"); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("confirm too late: %v", err)
	}
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) != 1 ||
		c.Differences[0].Mend != "vmnet network apply lan --confirm 60s, or vmnet network delete lan" {
		t.Errorf("%+v, %v", c, err)
	}
	x.m.Confirm = 0
	if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || changed {
		t.Errorf("apply without --confirm: %v, changed %v", err, changed)
	}
	x.m.Confirm = time.Minute
	if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || !changed {
		t.Errorf("apply: %v, changed %v", err, changed)
	}
	if _, err := x.m.ConfirmMove(x.ctx(), "lan"); err != nil {
		t.Error(err)
	}
	x.consistent()
	if err := x.m.Delete(x.ctx(), "lan", true); err != nil {
		t.Fatal(err)
	}
	x.hasAgain("again", host)
}

// TestLiveGuardKilled: without the process that takes back, check says so; apply and delete take
// back, and a confirmation is still heard.
func TestLiveGuardKilled(t *testing.T) {
	x := newHost(t)
	x.settled()
	before, host := x.left(), x.hostSide("up0")
	x.m.Guard = func(context.Context, string) error { return nil } // it is killed at once
	for _, mend := range []string{"apply", "delete", "confirm"} {
		x.m.Confirm = time.Minute
		if err := x.m.Create(x.ctx(), moving()); err != nil {
			t.Fatal(err)
		}
		x.deleted("lan")
		c, err := x.m.Check(x.ctx())
		if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "uplink" {
			t.Errorf("%+v, %v", c, err)
		}
		x.m.Confirm = 0
		switch mend {
		case "apply":
			_, _, err = x.m.Apply(x.ctx(), "lan")
			x.hasAgain("after apply", host)
		case "confirm":
			_, err = x.m.ConfirmMove(x.ctx(), "lan")
			x.consistent()
		}
		if err == nil {
			err = x.m.Delete(x.ctx(), "lan", false)
		}
		if err != nil {
			t.Fatalf("%s: %v", mend, err)
		}
		x.wants("left after "+mend, x.left(), before)
		x.hasAgain("on the interface after "+mend, host)
	}
}

// TestLiveWatchTakesBack: what nobody has confirmed in time, after its guard was killed.
func TestLiveWatchTakesBack(t *testing.T) {
	x := newHost(t)
	x.settled()
	host := x.hostSide("up0")
	x.m.Confirm = time.Second
	x.m.Guard = func(context.Context, string) error { return nil } // it is killed at once
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	if x.m.overdue("lan") {
		t.Error("overdue at once")
	}
	nstest.Eventually(t, patience, "the time to confirm has passed", func() bool { return x.m.overdue("lan") })
	w := x.watches()
	if r := w.next("the move"); r.Network != "lan" || r.Err != nil || fmt.Sprint(r.What) != "[move]" {
		t.Errorf("%+v", r)
	}
	x.hasAgain("again", host)
}

// TestLiveBridgeDeletedUnderAMove: what was moved to a bridge that somebody deletes comes back from
// the snapshot.
func TestLiveBridgeDeletedUnderAMove(t *testing.T) {
	x := newHost(t)
	x.settled()
	host := x.hostSide("up0")
	ended := x.guarded(time.Minute)
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	x.ip(x.host, "link", "del", "lan")
	ended()
	x.hasAgain("again", host)
}

// TestLiveMoveFails: after an error in the place of each step, the host has its addresses.
func TestLiveMoveFails(t *testing.T) {
	x := newHost(t)
	x.settled()
	ended := x.guarded(time.Minute)
	before, host := x.left(), x.hostSide("up0")
	create := func() error { return x.m.Create(x.ctx(), moving()) }
	for i := range x.steps(create) {
		x.m.Run = at(i, false, false)
		if err := create(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		ended()
		x.wants(fmt.Sprintf("left by an error in step %d", i), x.left(), before)
		x.hasAgain(fmt.Sprintf("after an error in step %d", i), host)
	}
}

// TestLiveMoveKilled: whenever the process that moves is killed, the guard takes back what it
// finds; without a guard, delete does.
func TestLiveMoveKilled(t *testing.T) {
	x := newHost(t)
	x.settled()
	const confirm = 300 * time.Millisecond
	ended := x.guarded(confirm)
	guard := x.m.Guard
	before, host := x.left(), x.hostSide("up0")
	create := func() error { return x.m.Create(x.ctx(), moving()) }
	for i := range x.steps(create) {
		for _, made := range []bool{false, true} {
			for _, alive := range []bool{true, false} {
				what := fmt.Sprintf("after a kill in step %d (made %v, guard %v)", i, made, alive)
				x.m.Run, x.m.Guard, x.m.Confirm = at(i, true, made), guard, confirm
				if !alive {
					x.m.Guard = func(context.Context, string) error { return nil }
				}
				if err := create(); !errors.Is(err, errBroken) {
					t.Fatalf("%s: %v", what, err)
				}
				x.m.Run, x.m.Confirm = nil, 0
				ended()
				if err := x.m.Delete(x.ctx(), "lan", false); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s: %v", what, err)
				}
				x.wants("left "+what, x.left(), before)
				x.hasAgain(what, host)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(x.m.State, "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestLiveMoverHangs: a process that hangs with the networks' lock does not keep the host's
// addresses from coming back, and does not move them when it goes on.
func TestLiveMoverHangs(t *testing.T) {
	x := newHost(t)
	x.settled()
	ended := x.guarded(300 * time.Millisecond)
	host := x.hostSide("up0")
	for _, in := range []string{"move", "after"} {
		hang := func(s step.Step) bool { return s.Name == in }
		x.m.Run = func(ctx context.Context, steps []step.Step) error {
			if in == "after" {
				steps = append(steps, step.Step{Name: in, Do: func(context.Context) error { return errBroken }})
			}
			return step.Run(ctx, steps, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
				if hang(s) {
					ended()
					x.hasAgain("while the mover hangs in "+in, host)
				}
				return do(ctx)
			})
		}
		err := x.m.Create(x.ctx(), moving())
		if in == "move" && (err == nil || !strings.Contains(err.Error(), "the time to confirm it has passed")) ||
			in == "after" && !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", in, err)
		}
		x.hasAgain("after all", host)
	}
}

// TestLiveNexthopsMove: objects of ip-nexthop(8) move with the routes by them, and come back, also
// when the kernel has removed them with the bridge.
func TestLiveNexthopsMove(t *testing.T) {
	x := newHost(t)
	x.ip(x.host, "nexthop", "add", "id", "7", "via", wanIP, "dev", "up0")
	x.ip(x.host, "nexthop", "add", "id", "8", "group", "7")
	x.ip(x.host, "route", "add", "10.7.0.0/16", "nhid", "7", "src", "203.0.113.2")
	x.ip(x.host, "route", "add", "10.8.0.0/16", "nhid", "8")
	x.settled()
	host := func(link string) string {
		return x.hostSide(link) + strings.ReplaceAll(x.ip(x.host, "nexthop"), link, "up0")
	}
	before := host("up0")
	moved := func() {
		t.Helper()
		if err := x.m.Create(x.ctx(), moving()); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"10.7.0.1", "10.8.0.1"} {
			if out := x.ip(x.host, "route", "get", to); !strings.Contains(out, "dev lan ") {
				t.Errorf("after the move: %s", out)
			}
		}
	}
	back := func(what string) {
		t.Helper()
		x.becomes(what, before, func() string { return host("up0") })
	}
	moved()
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	back("after a delete")
	ended := x.guarded(time.Minute)
	moved()
	x.deleted("lan")
	x.ip(x.host, "link", "del", "lan")
	ended()
	back("after the bridge was deleted under the move")
}

// TestLiveMoveDeleteCutOff: an interrupted delete is repeated.
func TestLiveMoveDeleteCutOff(t *testing.T) {
	x := newHost(t)
	x.settled()
	before, host := x.left(), x.hostSide("up0")
	steps := 1
	for i := 0; i < steps; i++ {
		for _, made := range []bool{false, true} {
			if err := x.m.Create(x.ctx(), moving()); err != nil {
				t.Fatal(err)
			}
			remove := func() error { return x.m.Delete(x.ctx(), "lan", false) }
			steps = x.steps(remove)
			x.m.Run = at(i, true, made)
			if err := remove(); !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", i, err)
			}
			x.m.Run = nil
			if err := remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("step %d: %v", i, err)
			}
			x.wants(fmt.Sprintf("left by a kill in step %d", i), x.left(), before)
			x.hasAgain(fmt.Sprintf("after a kill in step %d", i), host)
		}
	}
}

// TestLiveMoveDrift: what somebody changes under a moved host is seen and mended.
func TestLiveMoveDrift(t *testing.T) {
	x := newHost(t)
	x.settled()
	if err := x.m.Create(x.ctx(), moving()); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	x.consistent()
	for _, change := range []string{
		"addr add 203.0.113.9/24 dev up0", "link set up0 nomaster", "link set up0 down",
		"link set lan address 02:00:00:00:00:77",
	} {
		x.ip(x.host, strings.Fields(change)...)
		c, err := x.m.Check(x.ctx())
		if err != nil || len(c.Differences) == 0 || c.Differences[0].What != "uplink" {
			t.Errorf("%s: %+v, %v", change, c, err)
		}
		if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || !changed {
			t.Fatalf("%s: apply: %v, %v", change, changed, err)
		}
		x.consistent()
	}
	if addrs := x.ip(x.host, "addr", "show", "dev", "lan"); !strings.Contains(addrs, "203.0.113.9/24") {
		t.Errorf("addresses: %s", addrs)
	}
	err := x.m.Replace(x.ctx(), "lan", func(n *config.Network) error { n.Uplink.Move = config.NoMove; return nil })
	if !errors.Is(err, uplink.ErrTaken) {
		t.Errorf("the host's addresses would be on a port: %v", err)
	}
}

// TestLiveManagers: managers of interfaces are kept off the devices of a network, and what an
// interface needs for the next boot is written where that is wanted; delete removes all of it.
func TestLiveManagers(t *testing.T) {
	x := newLAN(t)
	root := t.TempDir()
	l, err := x.m.nl.Link("up0")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"etc/NetworkManager/conf.d/x.conf": "", "etc/systemd/network/x.network": "[Match]\nName=up0\n[Network]\nDHCP=yes\n",
		fmt.Sprintf("run/systemd/netif/links/%d", l.Index): "NETWORK_FILE=/etc/systemd/network/x.network\n",
	} {
		err := errors.Join(os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755),
			os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	x.m.Managers = &managers.Host{Root: root, Quiet: true}
	files := func() string {
		nm, _ := filepath.Glob(root + "/etc/NetworkManager/*/vmnet-*")
		networkd, _ := filepath.Glob(root + "/etc/systemd/network/05-vmnet-*")
		return strings.ReplaceAll(strings.Join(append(nm, networkd...), " "), root, "")
	}
	const kept = "/etc/NetworkManager/conf.d/vmnet-lan.conf /etc/systemd/network/05-vmnet-lan.network"
	create := func() error { return x.m.Create(x.ctx(), Wanted{Network: onLAN("lan0")}) }
	for i := range x.steps(create) {
		x.m.Run = at(i, false, false)
		if err := create(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.wants(fmt.Sprintf("left by an error in step %d", i), files(), "")
	}
	x.m.Run = nil
	x.create(onLAN("lan0"))
	x.wants("written", files(), kept)
	if text, err := os.ReadFile(root + "/etc/systemd/network/05-vmnet-lan.network"); err != nil ||
		!strings.Contains(string(text), "\nName=lan lan0\n") {
		t.Errorf("%s, %v", text, err)
	}
	if err := os.Remove(root + "/etc/systemd/network/05-vmnet-lan.network"); err != nil {
		t.Fatal(err)
	}
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "managers" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, _, err := x.m.Apply(x.ctx(), "lan"); err != nil {
		t.Fatal(err)
	}
	x.wants("after apply", files(), kept)
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	x.wants("after delete", files(), "")

	w := moving()
	if err := x.m.Create(x.ctx(), w); err != nil {
		t.Fatal(err)
	}
	x.deleted("lan")
	boot, err := x.m.NextBoot(w.Network, false)
	if err != nil || boot.Manager != "systemd-networkd" || len(boot.Files) != 2 {
		t.Errorf("%+v, %v", boot, err)
	}
	x.wants("not written", files(), "")
	if _, err := x.m.NextBoot(w.Network, true); err != nil {
		t.Error(err)
	}
	x.wants("for the next boot", files(), "/etc/systemd/network/05-vmnet-lan-bridge.network "+
		"/etc/systemd/network/05-vmnet-lan-uplink.network")
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	x.wants("after delete", files(), "")
}
