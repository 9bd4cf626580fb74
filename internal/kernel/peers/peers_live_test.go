package peers_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/peers"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func open(tb testing.TB, ns *netns.NS) *rtnl.Conn {
	tb.Helper()
	c, err := rtnl.Open(ns)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func look(tb testing.TB, ns *netns.NS, nl *rtnl.Conn) *peers.View {
	tb.Helper()
	v, err := peers.Look(tb.Context(), ns, nl)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// veth makes a pair: one end in the namespace of nl, the other one in there.
func veth(tb testing.TB, nl *rtnl.Conn, name string, there *netns.NS, peer string) {
	tb.Helper()
	if err := nl.Create("veth", rtnl.Name(name), rtnl.VethPeer(peer, there)); err != nil {
		tb.Fatalf("make %s: %v", name, err)
	}
}

// child makes a macvlan in the namespace there.
func child(tb testing.TB, nl *rtnl.Conn, parent string, there *netns.NS, name string) {
	tb.Helper()
	l, err := nl.Link(parent)
	if err == nil {
		err = nl.Create("macvlan", rtnl.Name(name), rtnl.Lower(l.Index), rtnl.Netns(there), rtnl.MacvlanMode(4))
	}
	if err != nil {
		tb.Fatalf("make %s: %v", name, err)
	}
}

// sleeper starts a process in ns, in a user namespace of its own if that is wanted.
func sleeper(tb testing.TB, ns *netns.NS, flags uintptr) int {
	tb.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := ns.Do(cmd.Start); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd.Process.Pid
}

// TestLivePairs: both ends of each veth pair are found, no matter what made it, with the
// holder of the other end.
func TestLivePairs(t *testing.T) {
	host, box, bare := nstest.New(t), nstest.New(t), nstest.New(t)
	nl := open(t, host)
	veth(t, nl, "veth1", box, "eth0")
	veth(t, nl, "veth2", bare, "eth0")
	veth(t, nl, "qvo3", host, "qvb3")
	pid := sleeper(t, box, 0)
	v := look(t, host, nl)
	var got []string
	for _, p := range v.Pairs() {
		got = append(got, fmt.Sprint(p.Link.Name, " ", p.Peer.Name, " ", p.Space.PIDs, " ", p.Space.Own))
	}
	want := []string{fmt.Sprintf("veth1 eth0 [%d] false", pid), "veth2 eth0 [] false"}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%q lacks %q", got, w)
		}
	}
	if len(got) != 3 || !strings.HasPrefix(got[2], "qv") {
		t.Errorf("%q: both ends of qvo3 are here, and it should be there once", got)
	}
	if name := peers.Command(pid); name != "sleep" {
		t.Errorf("command %q", name)
	}
	inode, err := box.Inode()
	if err != nil {
		t.Fatal(err)
	}
	l, err := nl.Link("veth1")
	if err != nil {
		t.Fatal(err)
	}
	p, ok := v.PairOf(l)
	if !ok || p.Space.Inode != inode || p.Space.Foreign || p.Space.Name() != fmt.Sprintf("/proc/%d/ns/net", pid) {
		t.Errorf("veth1: %+v of %+v", p, p.Space)
	}
}

// TestLiveNames: a namespace that is bound to a name is called by that, even without a process.
func TestLiveNames(t *testing.T) {
	host, box := nstest.New(t), nstest.New(t)
	name := fmt.Sprintf("vmnet-test-%d", os.Getpid())
	path := filepath.Join(netns.RunDir, name)
	bind(t, box, path)
	nl := open(t, host)
	veth(t, nl, "veth1", box, "eth0")
	pairs := look(t, host, nl).Pairs()
	if len(pairs) != 1 || !slices.Equal(pairs[0].Space.Names, []string{name}) || pairs[0].Space.Name() != name {
		t.Errorf("%+v", pairs)
	}
}

// bind gives a namespace a path, as ip-netns(8) does.
func bind(tb testing.TB, ns *netns.NS, path string) {
	tb.Helper()
	if err := os.Mkdir(filepath.Dir(path), 0o755); err == nil {
		tb.Cleanup(func() { _ = os.Remove(filepath.Dir(path)) }) // another test may use it by now
	} else if !errors.Is(err, fs.ErrExist) {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Mount(ns.Path(), path, "", syscall.MS_BIND, ""); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			tb.Error(err)
		}
		if err := os.Remove(path); err != nil {
			tb.Error(err)
		}
	})
}

// TestLiveChildren: who shares a parent device is found in all namespaces, also where a device was
// made in another one at once, as CNI plugins do.
func TestLiveChildren(t *testing.T) {
	host, box, other := nstest.New(t), nstest.New(t), nstest.New(t)
	nl := open(t, host)
	veth(t, nl, "eth0", host, "far0")
	veth(t, nl, "eth1", host, "far1")
	child(t, nl, "eth0", host, "mac0")
	child(t, nl, "eth0", box, "mac1")
	child(t, nl, "eth1", box, "mac2")
	sleeper(t, box, 0)
	// A macvlan on a parent device in another namespace that has the index of eth0 does not count.
	there := open(t, other)
	eth0, err := nl.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := there.Create("veth", rtnl.Name("lan0"), rtnl.Index(eth0.Index),
		rtnl.VethPeer("lan1", other)); err != nil {
		t.Fatal(err)
	}
	child(t, there, "lan0", box, "mac3")
	child(t, there, "lan0", other, "mac4")
	sleeper(t, other, 0)
	for range 2 { // the second time, the kernel has assigned all ids
		children, err := look(t, host, nl).Children()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range children {
			got = append(got, fmt.Sprint(c.Parent.Name, " ", c.Name, " ", c.Space.Own))
		}
		if want := "eth0 mac0 true,eth0 mac1 false,eth1 mac2 false"; strings.Join(got, ",") != want {
			t.Errorf("%q, want %s", got, want)
		}
	}
}

// TestLiveForeign: a namespace in another user namespace is recognized.
func TestLiveForeign(t *testing.T) {
	host := nstest.New(t)
	nl := open(t, host)
	pid := sleeper(t, host, syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET)
	theirs, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	veth(t, nl, "veth1", theirs, "eth0")
	pairs := look(t, host, nl).Pairs()
	if len(pairs) != 1 || !pairs[0].Space.Foreign || pairs[0].Peer == nil {
		t.Errorf("%+v", pairs)
	}
}

// TestLiveLookIsQuick: many links in many namespaces.
func TestLiveLookIsQuick(t *testing.T) {
	host, box := nstest.New(t), nstest.New(t)
	nl := open(t, host)
	const links = 200
	for i := range links {
		veth(t, nl, fmt.Sprint("v", i), box, fmt.Sprint("p", i))
	}
	start := time.Now()
	pairs := look(t, host, nl).Pairs()
	took := time.Since(start)
	const bound = 5 * time.Second // a few ms on an idle machine
	if len(pairs) != links || took > bound {
		t.Errorf("%d pairs in %v", len(pairs), took)
	}
	t.Logf("%d pairs in %v", len(pairs), took)
}
