package routed

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/routed/gateway"
	"vmnet/step"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 30 * time.Second

// h is a host in a namespace of its own, and a machine on its LAN. A veth device stands for a
// guest's tap: its peer is the guest's NIC.
type h struct {
	testing.TB
	*Host
	lan    *netns.NS
	probes bool  // the LAN is asked for addresses, which takes a second
	nics   []NIC // that the host knows of
}

func newHost(tb testing.TB) *h {
	tb.Helper()
	nstest.RequireTun(tb)
	_, err := exec.LookPath("busybox")
	nstest.Require(tb, "busybox", err == nil, "apt install busybox-static")
	ns := nstest.New(tb)
	nl, err := rtnl.Open(ns)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nl.Close)
	x := &h{TB: tb, Host: &Host{NS: ns, NL: nl}, lan: nstest.New(tb)}
	x.Host.NICs = func() (found []NIC, err error) {
		for _, n := range x.nics {
			if _, err := nl.Link(n.Tap); err == nil {
				found = append(found, n)
			}
		}
		return found, nil
	}
	x.fast(ns)
	x.fast(x.lan)
	x.veth("eth0", x.lan)
	for _, where := range []*netns.NS{ns, x.lan} {
		x.run(where, "ip", "link", "set", "lo", "up")
		x.run(where, "ip", "link", "set", "eth0", "up")
	}
	x.run(ns, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	x.run(ns, "ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	x.run(x.lan, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	x.run(x.lan, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	for _, where := range []*netns.NS{ns, x.lan} {
		nstest.Eventually(tb, patience, "eth0 has its link-local address", func() bool {
			out := x.run(where, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "link", "-tentative")
			return strings.Contains(out, "fe80::")
		})
	}
	return x
}

// veth makes a device of the host whose peer is eth0 of another netns.
func (x *h) veth(name string, peer *netns.NS) {
	x.Helper()
	err := x.NL.CreateWithAlias("veth", rtnl.RandomIndex(), "test", rtnl.Name(name), rtnl.VethPeer("eth0", peer))
	if err != nil {
		x.Fatal(err)
	}
}

// in runs a program in a netns.
func (x *h) in(ns *netns.NS, args ...string) (out string, err error) {
	x.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = ns.Do(func() error {
		text, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		out = string(text)
		return err
	})
	return out, err
}

// run is in for what must succeed.
func (x *h) run(ns *netns.NS, args ...string) string {
	x.Helper()
	out, err := x.in(ns, args...)
	if err != nil {
		x.Fatalf("%q: %v: %s", args, err, out)
	}
	return out
}

// fast makes new links use their IPv6 addresses at once.
func (x *h) fast(ns *netns.NS) {
	x.Helper()
	for _, name := range []string{"accept_dad", "dad_transmits"} {
		if err := (forwarding.Settings{NS: ns}).Write("net/ipv6/conf/default/"+name, "0"); err != nil {
			x.Fatal(err)
		}
	}
}

// sysctl reads a setting of the host.
func (x *h) sysctl(name string) string {
	x.Helper()
	value, ok, err := x.settings().Read(name)
	if err != nil || !ok {
		x.Fatalf("%s: %v, %v", name, ok, err)
	}
	return value
}

func (x *h) set(name, value string) {
	x.Helper()
	if err := x.settings().Write(name, value); err != nil {
		x.Fatal(err)
	}
}

func (x *h) link(name string) *rtnl.Link {
	x.Helper()
	l, err := x.NL.Link(name)
	if err != nil {
		x.Fatal(err)
	}
	return l
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// steps returns the steps for a guest's NIC on eth0, with one that makes its tap.
func (x *h) steps(tap string, guest *netns.NS, ips ...string) []step.Step {
	x.Helper()
	n := NIC{tap, x.link("eth0").Index, addrs(ips...)}
	list, err := x.Steps(n, x.link("eth0"))
	if err != nil {
		x.Fatal(err)
	}
	for i := range list {
		if list[i].Name == "probe" && !x.probes {
			list[i].Do = func(context.Context) error { return nil }
		}
	}
	peer := guest
	if peer == nil {
		peer = x.lan
	}
	return append([]step.Step{{
		Name: "tap",
		Do: func(context.Context) error {
			err := x.NL.CreateWithAlias("veth", rtnl.RandomIndex(), "test", rtnl.Name(tap),
				rtnl.VethPeer("g-"+tap, peer))
			if err == nil {
				err = x.NL.SetQuiet(x.link(tap).Index)
			}
			x.nics = append(x.nics, n)
			return err
		},
		Undo: func(context.Context) error {
			l, err := x.NL.Link(tap)
			if err == nil {
				err = x.NL.Delete(l.Index)
			}
			return rtnl.IgnoreNotExist(err)
		},
	}}, list...)
}

// guest makes a routed guest that is configured as GuestConfig says.
func (x *h) guest(tap string, ips ...string) *netns.NS {
	x.Helper()
	ns := nstest.New(x)
	x.fast(ns)
	if err := step.Run(x.Context(), x.steps(tap, ns, ips...), nil); err != nil {
		x.Fatal(err)
	}
	dev := "g-" + tap
	x.run(ns, "ip", "link", "set", "lo", "up")
	x.run(ns, "ip", "link", "set", dev, "up")
	for _, a := range addrs(ips...) {
		if a.Is4() {
			x.run(ns, "ip", "addr", "add", a.String()+"/32", "dev", dev)
			x.run(ns, "ip", "route", "add", "default", "via", gateway.IPv4.String(), "dev", dev, "onlink")
		} else {
			x.run(ns, "ip", "addr", "add", a.String()+"/128", "dev", dev, "nodad")
			x.run(ns, "ip", "-6", "route", "add", "default", "via", gateway.IPv6.String(), "dev", dev)
		}
	}
	return ns
}

// reaches reports whether a ping arrives; source may be empty.
func (x *h) reaches(from *netns.NS, to, source string) bool {
	x.Helper()
	args := []string{"busybox", "ping", "-c", "1", "-W", "1"}
	if source != "" {
		args = append(args, "-I", source)
	}
	_, err := x.in(from, append(args, to)...)
	return err == nil
}

// pings waits until a ping arrives: the first ones may wait for duplicate address detection, and
// for the delay of a proxy.
func (x *h) pings(from *netns.NS, to string) {
	x.Helper()
	nstest.Eventually(x, patience, to+" answers", func() bool { return x.reaches(from, to, "") })
}

// remembered returns the alias of the memory; empty for none.
func (x *h) remembered() string {
	l, err := x.NL.Link(memoryName)
	if err != nil {
		return ""
	}
	return l.Alias
}

// entriesLeft returns vmnet's entries.
func (x *h) entriesLeft() []rtnl.Proxy {
	x.Helper()
	all, err := x.Host.entries()
	if err != nil {
		x.Fatal(err)
	}
	return all
}
