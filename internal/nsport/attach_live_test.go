package nsport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// TestLiveAttach: the same attach again changes nothing, another one says how it differs, and a
// detach leaves what was there before. Every way to name the namespace means the same one.
func TestLiveAttach(t *testing.T) {
	x := newHost(t)
	before := x.links()
	for name, s := range map[string]Spec{"veth": x.onBridge(), "macvlan": x.onParent()} {
		t.Run(name, func(*testing.T) {
			done := x.attach(s)
			if !done.Changed || done.Interface != "eth0" || done.Netns.Count < 1 { // this process may be there too
				t.Errorf("%+v", done)
			}
			nstest.Eventually(t, patience, "it is up", func() bool { // the kernel notices the carrier later
				list := x.list()
				return len(list) == 1 && list[0].State == stateOf(name)
			})
			there := x.links()
			for _, again := range []string{s.Netns, x.path(), x.box.Path()} {
				s.Netns = again
				if done := x.attach(s); done.Changed {
					t.Errorf("again by %s: it has changed", again)
				}
			}
			x.wants("after the same attach", x.links(), there)
			other := s
			other.Addresses = other.Addresses[:1]
			_, err := x.m.Attach(x.ctx(), other)
			const want = "addresses 10.0.0.7/24,fd00::7/64, want 10.0.0.7/24"
			if !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), want) {
				t.Errorf("other addresses: %v", err)
			}
			l := x.link(x.boxNL, "eth0")
			addrs, err := x.boxNL.Addrs(l.Index)
			if got := joined(addrs); err != nil || got != "10.0.0.7/24,fd00::7/64" || !l.Up {
				t.Errorf("inside: %s, up %v, %v", got, l.Up, err)
			}
			if gone := x.detach(Which{Netns: s.Netns}); len(gone.Removed) != 1 || gone.Removed[0].ID != "web" {
				t.Errorf("%+v", gone)
			}
			x.wants("left", x.links(), before)
			if gone := x.detach(Which{Netns: s.Netns, ID: "web"}); len(gone.Removed) != 0 {
				t.Errorf("again: %+v", gone)
			}
		})
	}
}

func stateOf(kind string) nic.State {
	if kind == Veth {
		return "forwarding"
	}
	return nic.Up
}

// TestLivePing: two containers on a bridge reach each other and the host.
func TestLivePing(t *testing.T) {
	x := newHost(t)
	br := x.link(x.nl, "br0")
	x.do(x.nl.AddAddr(br.Index, netip.MustParsePrefix("10.0.0.1/24")))
	x.attach(x.onBridge())
	second := nstest.New(t)
	s := Spec{
		Netns:     second.Path(),
		Bridge:    "br0",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.8/24")},
	}
	x.attach(s)
	for _, to := range []struct {
		ns   *netns.NS
		addr string
	}{{x.host, "10.0.0.1"}, {x.box, "10.0.0.7"}} {
		var l net.Listener
		x.do(
			to.ns.Do(
				func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(to.addr, "80")); return err },
			),
		)
		x.do(second.Do(func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(to.addr, "80"), patience)
			if err != nil {
				return err
			}
			return c.Close()
		}))
		x.do(l.Close())
	}
}

// TestLiveGoesWithItsNetns: of an attachment nothing is left when its namespace ends.
func TestLiveGoesWithItsNetns(t *testing.T) {
	x := newHost(t)
	before := x.links()
	for name, s := range map[string]Spec{"veth": x.onBridge(), "macvlan": x.onParent()} {
		ns, err := netns.New()
		x.do(err)
		s.Netns = ns.Path()
		x.attach(s)
		if len(x.list()) != 1 {
			t.Errorf("%s: %+v", name, x.list())
		}
		x.do(ns.Close())
		nstest.Eventually(t, patience, name+" goes", func() bool {
			return len(x.list()) == 0 && x.links() == before
		})
	}
}

// TestLiveMend: the same attach restores what somebody has changed here or there.
func TestLiveMend(t *testing.T) {
	x := newHost(t)
	s := x.onBridge()
	s.Port = brport.Settings{Isolated: true}
	done := x.attach(s)
	there := x.links()
	host := x.link(x.nl, done.Host)
	end := x.link(x.boxNL, "eth0")
	addr := s.Addresses[0]
	for what, change := range map[string]func() error{
		"no bridge":  func() error { return x.nl.Set(host.Index, rtnl.Master(0)) },
		"down":       func() error { return x.nl.Set(host.Index, rtnl.Up(false)) },
		"no address": func() error { return x.boxNL.DeleteAddr(end.Index, addr) },
		"down there": func() error { return x.boxNL.Set(end.Index, rtnl.Up(false)) },
		"isolation": func() error {
			return x.nl.SetPort(host.Index, rtnl.PortChange{PortFlags: rtnl.PortFlags{Learning: true, Flood: true}})
		},
	} {
		x.do(change())
		if done := x.attach(s); !done.Changed {
			t.Errorf("%s: unchanged", what)
		}
		x.wants("after "+what, x.links(), there)
		if done := x.attach(s); done.Changed {
			t.Errorf("%s: it has changed again", what)
		}
	}
	// What the container does with names is its own business.
	x.do(x.boxNL.Set(end.Index, rtnl.Up(false)))
	x.do(x.boxNL.Set(end.Index, rtnl.Name("lan0")))
	x.attach(s)
	nstest.Eventually(t, patience, "lan0 forwards", func() bool { // the kernel notices the carrier later
		list := x.list()
		return len(list) == 1 && list[0].Interface == "lan0" && list[0].State == "forwarding"
	})
	// On another bridge, it is left alone.
	x.do(x.nl.Create("bridge", rtnl.Name("br1")))
	x.do(x.nl.Set(host.Index, rtnl.Master(x.link(x.nl, "br1").Index)))
	if _, err := x.m.Attach(x.ctx(), s); err == nil ||
		!strings.Contains(err.Error(), "it is a port of br1 now") {
		t.Error(err)
	}
}

// TestLiveRefuses: what cannot work is refused with its cause, and nothing is left.
func TestLiveRefuses(t *testing.T) {
	x := newHost(t)
	x.do(x.boxNL.Create("bridge", rtnl.Name("eth9")))
	before := x.links()
	dir := t.TempDir()
	fifo, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "file")
	x.do(syscall.Mkfifo(fifo, 0o600))
	x.do(os.WriteFile(file, nil, 0o600))
	for want, change := range map[string]func(*Spec){
		"eth9 already (name another with --ifname)": func(s *Spec) { s.Interface = "eth9" },
		"bridge br7: no such network device":        func(s *Spec) { s.Bridge = "br7" },
		"eth0 is not a bridge":                      func(s *Spec) { s.Bridge = "eth0" },
		"parent device br7":                         func(s *Spec) { s.Bridge, s.Macvlan = "", "br7" },
		"lo is not an Ethernet device":              func(s *Spec) { s.Bridge, s.Macvlan = "", "lo" },
		"MTU 9000: br0 has 1500 bytes":              func(s *Spec) { s.MTU = 9000 },
		"filter VLANs":                              func(s *Spec) { s.Port.VLAN = 5 },
		"there is no network lab":                   func(s *Spec) { s.Bridge, s.Network = "", "lab" },
		"fifo is not a network namespace":           func(s *Spec) { s.Netns = fifo },
		"file is not a network namespace":           func(s *Spec) { s.Netns = file },
		"/proc/self/ns/mnt is not a":                func(s *Spec) { s.Netns = "/proc/self/ns/mnt" },
		"process 4194304: file does not exist":      func(s *Spec) { s.Netns = "4194304" },
		"no such file or directory":                 func(s *Spec) { s.Netns = "nosuch" },
		"it is the network namespace of the":        func(s *Spec) { s.Netns = x.host.Path() },
		"the record of this attachment takes":       func(s *Spec) { s.Addresses = many(30) },
		"no address is in the subnet of the router": func(s *Spec) {
			s.Gateways = []netip.Addr{netip.MustParseAddr("10.9.0.1")}
		},
	} {
		s := x.onBridge()
		change(&s)
		if _, err := x.m.Attach(x.ctx(), s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		x.wants("left after "+want, x.links(), before)
	}
	x.attach(x.onBridge())
	other := x.onBridge()
	other.Netns = nstest.New(t).Path()
	if _, err := x.m.Attach(x.ctx(), other); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "id web is that of eth0 in netns "+x.path()) {
		t.Errorf("an id of another namespace: %v", err)
	}
	second := x.onParent()
	second.ID, second.Interface = "two", "eth1"
	if _, err := x.m.Attach(x.ctx(), second); err == nil ||
		!strings.Contains(err.Error(), "has a default route already") {
		t.Errorf("a second default route: %v", err)
	}
	second.Gateways = nil
	x.attach(second)
	if _, err := x.m.Detach(x.ctx(), Which{Netns: second.Netns}); !errors.Is(err, ErrSeveral) {
		t.Errorf("a namespace with several: %v", err)
	}
	if gone := x.detach(Which{Netns: second.Netns, Interface: "eth1"}); len(gone.Removed) != 1 {
		t.Errorf("%+v", gone)
	}
	if gone := x.detach(Which{ID: "web"}); len(gone.Removed) != 1 {
		t.Errorf("%+v", gone)
	}
}

func many(n int) (all []netip.Prefix) {
	for i := range n {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)}), 24))
	}
	return all
}

// TestLiveSharesItsParent: a macvlan beside others on the parent device, as list and lower show.
func TestLiveSharesItsParent(t *testing.T) {
	x := newHost(t)
	x.attach(x.onParent())
	eth0 := x.link(x.nl, "eth0")
	x.do(x.nl.Create("macvlan", rtnl.Name("mac0"), rtnl.Lower(eth0.Index), rtnl.MacvlanMode(4)))
	links, _, err := x.m.Links(x.ctx())
	x.do(err)
	var got []string
	for _, l := range links {
		got = append(
			got,
			fmt.Sprint(l.Interface, " ", l.Type, " ", l.Source, l.Peer, " ", l.Netns.Own, " ", l.ID),
		)
	}
	want := "far0 veth eth0 true \nmac0 macvlan eth0 true \neth0 macvlan eth0 false web"
	x.wants("links", strings.Join(got, "\n"), want)
}

// TestLiveLocked: two attaches wait for each other.
func TestLiveLocked(t *testing.T) {
	x := newHost(t)
	unlock, err := x.m.lock(x.ctx())
	x.do(err)
	ctx, cancel := context.WithTimeout(x.ctx(), 50*time.Millisecond)
	defer cancel()
	if _, err := x.m.Attach(ctx, x.onBridge()); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "another vmnet netns") {
		t.Error(err)
	}
	x.m.DryRun = true
	x.m.Run = func(context.Context, []step.Step) error { return nil }
	if _, err := x.m.Attach(x.ctx(), x.onBridge()); err != nil {
		t.Errorf("a dry run waits: %v", err)
	}
	x.do(unlock())
}

// TestLiveForeignAlias: in a namespace that another user namespace owns, its users choose aliases.
// They decide nothing elsewhere.
func TestLiveForeignAlias(t *testing.T) {
	x := newHost(t)
	pid := x.sleep(x.host, syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET)
	s := x.onParent()
	s.Netns, s.ID = fmt.Sprint(pid), "theirs"
	x.attach(s)
	theirs, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	x.do(err)
	defer theirs.Close()
	nl := x.open(theirs)
	end := x.link(nl, "eth0")
	forged, _ := ParseRecord(end.Alias)
	forged.ID = "web"
	x.do(nl.Set(end.Index, rtnl.Alias(forged.String())))
	if done := x.attach(x.onBridge()); !done.Changed || done.ID != "web" {
		t.Errorf("%+v", done)
	}
	list := x.list()
	if len(list) != 2 || list[0].Claimed == list[1].Claimed {
		t.Errorf("%+v", list)
	}
	if gone := x.detach(Which{ID: "web"}); len(gone.Removed) != 1 || gone.Removed[0].Type != Veth {
		t.Errorf("%+v", gone)
	}
	if actions, err := x.m.Reconcile(x.ctx(), false); err != nil || len(actions) != 0 {
		t.Errorf("%+v, %v", actions, err)
	}
	x.do(nl.Set(end.Index, rtnl.Alias("")))
	gone := x.detach(Which{Netns: s.Netns})
	if len(gone.Removed) != 0 || len(gone.Notices) != 1 ||
		!strings.Contains(gone.Notices[0], "without vmnet's alias") {
		t.Errorf("%+v", gone)
	}
	x.do(nl.Set(end.Index, rtnl.Alias(forged.String())))
	if gone := x.detach(Which{Netns: s.Netns}); len(gone.Removed) != 1 {
		t.Errorf("%+v", gone)
	}
}

// TestLiveMovedOn: users of a namespace may move its end to another one, where it is still found.
func TestLiveMovedOn(t *testing.T) {
	x := newHost(t)
	s := x.onBridge()
	x.attach(s)
	next := nstest.New(t)
	x.do(x.boxNL.Set(x.link(x.boxNL, "eth0").Index, rtnl.Netns(next)))
	pid := x.sleep(next, 0)
	where := fmt.Sprintf("/proc/%d/ns/net", pid)
	if list := x.list(); len(list) != 1 || list[0].Netns.Name != where || list[0].State != nic.Down {
		t.Errorf("%+v", list)
	}
	if _, err := x.m.Attach(x.ctx(), s); err == nil ||
		!strings.Contains(err.Error(), "web is that of eth0 in netns "+where) {
		t.Error(err)
	}
	gone := x.detach(Which{Netns: s.Netns})
	if len(gone.Removed) != 0 || len(gone.Notices) != 1 ||
		!strings.Contains(gone.Notices[0], "is in netns "+where) {
		t.Errorf("%+v", gone)
	}
	if gone := x.detach(Which{ID: "web"}); len(gone.Removed) != 1 || len(x.list()) != 0 {
		t.Errorf("%+v", gone)
	}
	if gone := x.detach(Which{Netns: "nosuch"}); len(gone.Removed) != 0 || len(gone.Notices) != 1 {
		t.Errorf("%+v", gone)
	}
}

// TestLiveRouteByItsLink: the default route is by the interface that was attached, also where
// another one is in the same subnet, and by a router with a link-local address.
func TestLiveRouteByItsLink(t *testing.T) {
	x := newHost(t)
	x.do(x.boxNL.Create("veth", rtnl.Name("lan0"), rtnl.Up(true), rtnl.VethPeer("lan1", x.box)))
	x.up(x.boxNL, "lan1")
	x.do(x.boxNL.AddAddr(x.link(x.boxNL, "lan0").Index, netip.MustParsePrefix("10.0.0.9/24")))
	s := x.onBridge()
	s.Gateways = append(s.Gateways, netip.MustParseAddr("fe80::1"))
	x.attach(s)
	if again := x.attach(s); again.Changed {
		t.Error("it has changed")
	}
	routes, err := x.boxNL.Routes()
	x.do(err)
	end, found := x.link(x.boxNL, "eth0").Index, 0
	for _, r := range routes {
		if r.Dst.Bits() == 0 && r.Link == end {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d default routes by eth0: %+v", found, routes)
	}
}

// TestLiveTarget: a process that has ended has no namespace any longer, even if nobody has reaped
// it, and a number that is a name as well is refused.
func TestLiveTarget(t *testing.T) {
	x := newHost(t)
	cmd := exec.Command("sleep", "600")
	x.do(x.box.Do(cmd.Start))
	pid := cmd.Process.Pid
	got, err := openTarget(x.ctx(), fmt.Sprint(pid))
	x.do(err)
	inode, err := x.box.Inode()
	if err != nil || got.inode != inode {
		t.Errorf("netns %d, %v, want %d", got.inode, err, inode)
	}
	got.close()
	x.do(cmd.Process.Kill())
	nstest.Eventually(t, patience, "it has ended", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(text), ") Z ")
	})
	if _, err := openTarget(x.ctx(), fmt.Sprint(pid)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that has ended: %v", err)
	}
	_ = cmd.Wait()
	name := filepath.Join(netns.RunDir, fmt.Sprint(x.pid))
	if err := os.Mkdir(netns.RunDir, 0o755); err == nil {
		defer os.Remove(netns.RunDir)
	}
	x.do(os.WriteFile(name, nil, 0o444))
	defer os.Remove(name)
	if _, err := openTarget(x.ctx(), fmt.Sprint(x.pid)); err == nil ||
		!strings.Contains(err.Error(), "it is the name of a netns and a PID: give "+name+", or /proc/") {
		t.Errorf("a name and a PID: %v", err)
	}
	stop := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(x.ctx())
	cancel(stop)
	if _, err := openWithin(ctx, filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("a path without a file was opened")
	}
}
