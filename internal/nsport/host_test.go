package nsport

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) {
	if os.Getenv(stallEnv) != "" {
		stall()
	}
	leaktest.Main(m)
}

// patience is how long things may take that need no time on an idle machine.
const patience = 20 * time.Second

// h is a host with a bridge br0 and a parent device eth0, and a container.
type h struct {
	testing.TB
	host, box *netns.NS
	nl, boxNL *rtnl.Conn
	pid       int // a process in the container
	m         *Manager
}

func newHost(tb testing.TB) *h {
	tb.Helper()
	x := &h{TB: tb, host: nstest.New(tb), box: nstest.New(tb)}
	x.nl, x.boxNL = x.open(x.host), x.open(x.box)
	x.do(x.nl.Create("bridge", rtnl.Name("br0"), rtnl.Up(true)))
	x.do(x.nl.Create("veth", rtnl.Name("eth0"), rtnl.Up(true), rtnl.VethPeer("far0", x.host)))
	x.up(x.nl, "far0")
	x.pid = x.sleep(x.box, 0)
	x.m = x.manager()
	return x
}

func (x *h) manager() *Manager {
	x.Helper()
	m, err := Open(x.host.Path())
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(m.Close)
	m.LockDir = x.TempDir()
	return m
}

func (x *h) open(ns *netns.NS) *rtnl.Conn {
	x.Helper()
	c, err := rtnl.Open(ns)
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(c.Close)
	return c
}

func (x *h) do(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func (x *h) up(nl *rtnl.Conn, name string) {
	x.Helper()
	x.do(nl.Set(x.link(nl, name).Index, rtnl.Up(true)))
}

func (x *h) link(nl *rtnl.Conn, name string) *rtnl.Link {
	x.Helper()
	l, err := nl.Link(name)
	if err != nil {
		x.Fatalf("link %s: %v", name, err)
	}
	return l
}

// sleep starts a process in ns that ends with the test.
func (x *h) sleep(ns *netns.NS, flags uintptr) int {
	x.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	x.do(ns.Do(cmd.Start))
	x.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd.Process.Pid
}

func (x *h) path() string { return fmt.Sprintf("/proc/%d/ns/net", x.pid) }

func (x *h) ctx() context.Context { return x.Context() }

// onBridge is a Spec that needs every kind of step that a veth takes.
func (x *h) onBridge() Spec {
	return Spec{
		Netns: fmt.Sprint(x.pid), ID: "web", Bridge: "br0",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24"), netip.MustParsePrefix("fd00::7/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
}

// onParent is the same for a macvlan.
func (x *h) onParent() Spec {
	s := x.onBridge()
	s.Bridge, s.Macvlan = "", "eth0"
	return s
}

func (x *h) attach(s Spec) Attached {
	x.Helper()
	done, err := x.m.Attach(x.ctx(), s)
	if err != nil {
		x.Fatalf("attach: %v", err)
	}
	return done
}

func (x *h) detach(w Which) Detached {
	x.Helper()
	done, err := x.m.Detach(x.ctx(), w)
	if err != nil {
		x.Fatalf("detach: %v", err)
	}
	return done
}

// links lists all links here and in the container, with what can be changed of them.
func (x *h) links() string {
	x.Helper()
	var all []string
	for _, nl := range []*rtnl.Conn{x.nl, x.boxNL} {
		links, err := nl.Links("", 0)
		x.do(err)
		for _, l := range links {
			addrs, err := nl.Addrs(l.Index)
			x.do(err)
			all = append(all, fmt.Sprint(l.Name, l.Kind, l.Alias, l.Up, l.Master, l.MTU, addrs))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func (x *h) list() []Info {
	x.Helper()
	list, _, err := x.m.List(x.ctx())
	x.do(err)
	return list
}

// wants fails the test unless both are equal.
func (x *h) wants(what, got, want string) {
	x.Helper()
	if got != want {
		x.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}
