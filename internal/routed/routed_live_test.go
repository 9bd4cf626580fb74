package routed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/routed/gateway"
	"vmnet/step"
)

const (
	g1, g1v6 = "192.0.2.11", "2001:db8::11"
	g2, g2v6 = "192.0.2.12", "2001:db8::12"
)

// TestLiveReachability: two guests, the host and the LAN reach each other, with IPv4 and IPv6, and
// the LAN sees one MAC. The host forwards on the links that need it alone, and nothing is left.
func TestLiveReachability(t *testing.T) {
	x := newHost(t)
	one, two := x.guest("t1", g1, g1v6), x.guest("t2", g2, g2v6)
	for _, to := range []string{"192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2", g2, g2v6} {
		x.pings(one, to)
	}
	for _, to := range []string{g1, g1v6, g2, g2v6} {
		x.pings(x.lan, to)
		x.pings(x.NS, to)
	}
	x.pings(two, g1)
	mac := x.link("eth0").MAC.String()
	for line := range strings.Lines(x.run(x.lan, "ip", "neigh", "show", "dev", "eth0")) {
		if !strings.Contains(line, mac) && !strings.Contains(line, "FAILED") {
			t.Errorf("the LAN sees another address than %s: %s", mac, line)
		}
	}
	if out := x.run(x.NS, "ip", "route", "get", g1); !strings.Contains(out, "src 192.0.2.2") {
		t.Errorf("the host sends to its guest with another address than its own: %s", out)
	}
	_, hasForce, _ := x.settings().Read(forceForwarding("eth0"))
	whole := map[bool]string{true: "0", false: "1"}[hasForce] // the whole host forwards IPv6
	for name, want := range map[string]string{
		"net/ipv4/ip_forward": "0", "net/ipv4/conf/eth0/forwarding": "1", "net/ipv4/conf/lo/forwarding": "0",
		"net/ipv6/conf/eth0/forwarding": "1", "net/ipv6/conf/lo/forwarding": whole, "net/ipv6/conf/all/forwarding": whole,
		"net/ipv6/conf/eth0/proxy_ndp": "1",
		"net/ipv4/conf/eth0/proxy_arp": "0", "net/ipv4/conf/t1/rp_filter": "1", "net/ipv6/conf/t1/accept_ra": "0",
		"net/ipv6/conf/eth0/accept_ra": "2",
	} {
		if got := x.sysctl(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	for _, n := range x.nics {
		if missing, err := x.Missing(n); len(missing) > 0 || err != nil {
			t.Errorf("%s: %q, %v", n.Tap, missing, err)
		}
	}
	if done, err := x.Tidy(t.Context(), false); len(done) > 0 || err != nil {
		t.Errorf("something is said to be left while the guests run: %q, %v", done, err)
	}

	// A guest that uses another's address: the kernel drops it for IPv4, and not for IPv6.
	x.run(one, "ip", "addr", "add", "192.0.2.99/32", "dev", "g-t1")
	if x.reaches(one, "192.0.2.1", "192.0.2.99") {
		t.Error("a foreign IPv4 source passes")
	}
}

// TestLiveIPv4Alone: a guest without IPv6 cannot give the host routes by router advertisements: the
// host has no IPv6 on its tap.
func TestLiveIPv4Alone(t *testing.T) {
	x := newHost(t)
	x.guest("t1", g1)
	for name, want := range map[string]string{
		"net/ipv6/conf/t1/disable_ipv6": "1", "net/ipv6/conf/t1/accept_ra": "0", "net/ipv6/conf/eth0/forwarding": "0",
	} {
		if got := x.sysctl(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	if out := x.run(x.NS, "ip", "-6", "addr", "show", "dev", "t1"); out != "" {
		t.Errorf("addresses on the tap: %s", out)
	}
	if missing, err := x.Missing(x.nics[0]); len(missing) > 0 || err != nil {
		t.Errorf("%q, %v", missing, err)
	}
	x.pings(x.lan, g1)
}

// TestLiveAnnounced: a neighbor that knew another machine by a guest's addresses sends to the host
// from now on, after an attach and after entries were restored.
func TestLiveAnnounced(t *testing.T) {
	x := newHost(t)
	const other = "02:00:00:00:00:99"
	knows := func(mac string) bool {
		found := 0
		for _, a := range []string{g1, g1v6} {
			if strings.Contains(x.run(x.lan, "ip", "neigh", "show", a, "dev", "eth0"), mac) {
				found++
			}
		}
		return found == 2
	}
	forget := func() {
		t.Helper()
		for _, a := range []string{g1, g1v6} {
			x.run(x.lan, "ip", "neigh", "replace", a, "lladdr", other, "nud", "reachable", "dev", "eth0")
		}
		if !knows(other) {
			t.Fatal("the neighbor does not know the other machine")
		}
	}
	forget()
	x.guest("t1", g1, g1v6)
	mac := x.link("eth0").MAC.String()
	nstest.Eventually(t, patience, "the neighbor knows the host's address", func() bool { return knows(mac) })
	forget()
	if err := x.Mend(t.Context(), x.nics[0]); err != nil || !knows(other) {
		t.Errorf("announced although nothing was missing, or %v", err)
	}
	x.run(x.NS, "ip", "neigh", "del", "proxy", g1, "dev", "eth0")
	x.run(x.NS, "ip", "-6", "neigh", "del", "proxy", g1v6, "dev", "eth0")
	if err := x.Mend(t.Context(), x.nics[0]); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "it knows that again", func() bool { return knows(mac) })
}

// TestLiveKilled: a guest whose tap has gone is not answered for, for IPv4 at once and for IPv6
// once somebody tidies. Its former entries, and then the settings, are taken away, and other
// people's are not.
func TestLiveKilled(t *testing.T) {
	x := newHost(t)
	x.guest("t1", g1, g1v6)
	two := x.guest("t2", g2, g2v6)
	x.run(x.NS, "ip", "neigh", "add", "proxy", "192.0.2.77", "dev", "eth0")
	x.pings(x.lan, g1)
	x.pings(x.lan, g1v6)
	if err := x.NL.Delete(x.link("t1").Index); err != nil {
		t.Fatal(err)
	}
	answered := func(a string) bool {
		x.run(x.lan, "ip", "neigh", "flush", "dev", "eth0")
		x.reaches(x.lan, a, "")
		return strings.Contains(x.run(x.lan, "ip", "neigh", "show", a), "lladdr")
	}
	if answered(g1) {
		t.Error("the dead guest's IPv4 address is answered for")
	}
	for _, dry := range []bool{true, false} {
		done, err := x.Tidy(t.Context(), dry)
		want := []Removed{{"eth0", "proxy entry of " + g1}, {"eth0", "proxy entry of " + g1v6}}
		if !slices.Equal(done, want) || err != nil {
			t.Errorf("dry %v: %q, %v", dry, done, err)
		}
		if left := len(x.entriesLeft()); dry != (left == 4) {
			t.Errorf("dry %v: %d entries", dry, left)
		}
	}
	if answered(g1v6) {
		t.Error("the dead guest's IPv6 address is answered for")
	}
	x.pings(two, "192.0.2.1")
	x.pings(x.lan, g2v6)

	x.set("net/ipv6/conf/eth0/proxy_ndp", "2") // somebody's own
	if err := x.NL.Delete(x.link("t2").Index); err != nil {
		t.Fatal(err)
	}
	if done, err := x.Tidy(t.Context(), false); len(done) < 5 || err != nil {
		t.Errorf("%q, %v", done, err)
	}
	for name, want := range map[string]string{
		"net/ipv4/conf/eth0/forwarding": "0", "net/ipv6/conf/eth0/forwarding": "0",
		"net/ipv6/conf/all/forwarding": "0", "net/ipv6/conf/eth0/accept_ra": "1", "net/ipv6/conf/eth0/proxy_ndp": "2",
	} {
		if got := x.sysctl(name); got != want {
			t.Errorf("%s=%s is left, want %s", name, got, want)
		}
	}
	if x.remembered() != "" || len(x.entriesLeft()) > 0 {
		t.Errorf("left: memory %q, entries %v", x.remembered(), x.entriesLeft())
	}
	if out := x.run(x.NS, "ip", "neigh", "show", "proxy"); !strings.Contains(out, "192.0.2.77") {
		t.Errorf("somebody else's entry is gone: %q", out)
	}
	if done, err := x.Tidy(t.Context(), false); len(done) > 0 || err != nil {
		t.Errorf("nothing is left, and yet: %q, %v", done, err)
	}
}

// TestLiveTaken: an address that a machine on the LAN has, or that the host routes elsewhere.
func TestLiveTaken(t *testing.T) {
	x := newHost(t)
	x.probes = true
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		err := step.Run(t.Context(), x.steps("t1", nstest.New(t), a), nil)
		if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), "probe: ") {
			t.Errorf("%s: %v", a, err)
		}
	}
	x.run(x.NS, "ip", "neigh", "add", "192.0.2.50", "lladdr", "02:00:00:00:00:50", "dev", "eth0", "nud", "permanent")
	err := x.Probe(t.Context(), x.link("eth0"), addrs("192.0.2.50"))
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "permanent") {
		t.Error(err)
	}
	x.run(x.NS, "ip", "route", "add", g1+"/32", "dev", "lo")
	err = step.Run(t.Context(), x.steps("t1", nil, g1), nil)
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "by lo") {
		t.Error(err)
	}
	if x.remembered() != "" || len(x.entriesLeft()) > 0 || x.sysctl("net/ipv4/conf/eth0/forwarding") != "0" {
		t.Errorf("left: memory %q, entries %v", x.remembered(), x.entriesLeft())
	}
}

// TestLiveFaults: an error at each step leaves nothing; a cut after each step leaves what Tidy
// removes once the tap has gone with its process.
func TestLiveFaults(t *testing.T) {
	x := newHost(t)
	before := x.state()
	list := x.steps("t1", nil, g1, g1v6)
	if len(list) < 9 {
		t.Fatalf("only %d steps", len(list))
	}
	broken := errors.New("broken")
	for i := range list {
		x.nics = nil
		list := x.steps("t1", nil, g1, g1v6)
		name := list[i].Name
		do := list[i].Do
		list[i].Do = func(ctx context.Context) error { return errors.Join(do(ctx), broken) }
		if err := step.Run(t.Context(), list, nil); !errors.Is(err, broken) || strings.Contains(err.Error(), "undo") {
			t.Fatalf("%s: %v", name, err)
		}
		if now := x.state(); now != before {
			t.Errorf("error at %s leaves:\n%s\nbefore:\n%s", name, now, before)
		}

		x.nics = nil
		list = x.steps("t1", nil, g1, g1v6)
		for _, s := range list[:i+1] {
			if err := s.Do(t.Context()); err != nil {
				t.Fatalf("%s: %v", s.Name, err)
			}
		}
		if l, err := x.NL.Link("t1"); err == nil {
			if err := x.NL.Delete(l.Index); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := x.Tidy(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if now := x.state(); now != before {
			t.Errorf("a cut after %s leaves:\n%s\nbefore:\n%s", name, now, before)
		}
	}
}

// state is what the host has of routed guests, as text.
func (x *h) state() string {
	x.Helper()
	text := fmt.Sprintln(x.remembered(), x.entriesLeft())
	for _, s := range []string{
		"net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/eth0/forwarding", "net/ipv6/conf/all/forwarding",
		"net/ipv4/ip_forward", "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/proxy_ndp",
	} {
		text += fmt.Sprintln(s, x.sysctl(s))
	}
	routes, err := x.Host.routes()
	if err != nil {
		x.Fatal(err)
	}
	for _, a := range addrs(g1, g1v6) {
		text += fmt.Sprintln(a, routes[a])
	}
	return text
}

// TestLiveDrift: what somebody takes away is missing, and Mend restores it. An uplink that was down
// has no entries.
func TestLiveDrift(t *testing.T) {
	x := newHost(t)
	x.guest("t1", g1, g1v6)
	n := x.nics[0]
	for want, change := range map[string]func(){
		"proxy entry of " + g1: func() {
			x.run(x.NS, "ip", "link", "set", "eth0", "down")
			x.run(x.NS, "ip", "link", "set", "eth0", "up")
		},
		"proxy entry of " + g1v6: func() {
			x.run(x.NS, "ip", "-6", "neigh", "del", "proxy", g1v6, "dev", "eth0")
		},
		"route of " + g1:                             func() { x.run(x.NS, "ip", "route", "del", g1) },
		"route of " + g1v6:                           func() { x.run(x.NS, "ip", "-6", "route", "del", g1v6) },
		"address fe80::1/64":                         func() { x.run(x.NS, "ip", "addr", "del", "fe80::1/64", "dev", "t1") },
		"address 169.254.0.1/32":                     func() { x.run(x.NS, "ip", "addr", "flush", "dev", "t1") },
		"sysctl net.ipv4.conf.t1.rp_filter=1":        func() { x.set("net/ipv4/conf/t1/rp_filter", "0") },
		"sysctl net.ipv6.conf.t1.accept_ra=0":        func() { x.set("net/ipv6/conf/t1/accept_ra", "2") },
		"sysctl net.ipv4.conf.eth0.forwarding=1":     func() { x.set("net/ipv4/conf/eth0/forwarding", "0") },
		"sysctl net.ipv6.conf.eth0.proxy_ndp=1":      func() { x.set("net/ipv6/conf/eth0/proxy_ndp", "0") },
		"sysctl net.ipv4.conf.t1.forwarding=1":       func() { x.set("net/ipv4/ip_forward", "1"); x.set("net/ipv4/ip_forward", "0") },
		"sysctl net.ipv6.conf.t1.accept_redirects=0": func() { x.set("net/ipv6/conf/t1/accept_redirects", "1") },
	} {
		change()
		if missing, err := x.Missing(n); !slices.Contains(missing, want) || err != nil {
			t.Errorf("%s: found %q, %v", want, missing, err)
		}
		if err := x.Mend(t.Context(), n); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if missing, err := x.Missing(n); len(missing) > 0 || err != nil {
			t.Errorf("%s: %q after it was mended, %v", want, missing, err)
		}
	}
	x.pings(x.lan, g1)
}

// TestLiveDefaultRouteSurvives: a host that has its default route from a router advertisement, on
// the uplink and on another link, keeps it as it begins to forward.
func TestLiveDefaultRouteSurvives(t *testing.T) {
	x := newHost(t)
	other := nstest.New(t)
	x.veth("eth1", other)
	x.run(x.NS, "ip", "link", "set", "eth1", "up")
	x.run(other, "ip", "link", "set", "eth0", "up")
	for dev, metric := range map[string]string{"eth0": "100", "eth1": "200"} {
		x.run(x.NS, "ip", "-6", "route", "add", "default", "via", "fe80::99", "dev", dev, "proto", "ra",
			"expires", "1000", "metric", metric)
	}
	x.guest("t1", g1v6)
	out := x.run(x.NS, "ip", "-6", "route", "show", "default")
	if strings.Count(out, "proto ra") != 2 {
		t.Errorf("routes are lost: %s", out)
	}
	if a, b := x.sysctl("net/ipv6/conf/eth0/accept_ra"), x.sysctl("net/ipv6/conf/eth1/accept_ra"); a != "2" ||
		b != "1" && x.sysctl("net/ipv6/conf/all/forwarding") == "0" {
		t.Errorf("accept_ra is %s and %s", a, b)
	}
}

// TestLiveInherit: forwarding that a network has turned on stays for the routed guests when the
// network goes, and is set back by the last of them.
func TestLiveInherit(t *testing.T) {
	x := newHost(t)
	x.set("net/ipv4/ip_forward", "1")
	x.set("net/ipv6/conf/all/forwarding", "1")
	if taken, err := x.Inherit(t.Context(), true, true, nil); taken || err != nil {
		t.Errorf("without a guest: %v, %v", taken, err)
	}
	x.guest("t1", g1, g1v6)
	if taken, err := x.Inherit(t.Context(), true, true, []string{"eth0"}); !taken || err != nil {
		t.Errorf("%v, %v", taken, err)
	}
	if _, err := x.Tidy(t.Context(), false); err != nil || x.sysctl("net/ipv4/ip_forward") != "1" {
		t.Errorf("turned off under the guest: %v", err)
	}
	if err := x.NL.Delete(x.link("t1").Index); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Tidy(t.Context(), false); err != nil {
		t.Error(err)
	}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth0/forwarding"} {
		if x.sysctl(s) != "0" {
			t.Errorf("%s is left on", s)
		}
	}
}

// TestLiveLock: of many that change the settings at once, none forgets what another remembers; a
// device of that name that is somebody else's is left alone.
func TestLiveLock(t *testing.T) {
	x := newHost(t)
	errs := make(chan error)
	const many = 8
	for i := range many {
		go func() {
			m, err := x.lock(context.Background())
			if err == nil {
				m.changes = append(m.changes, change{100 + i, forward4})
				err = errors.Join(m.save(), m.close())
			}
			errs <- err
		}()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(x.remembered(), "=4"); n != many {
		t.Errorf("%d are remembered: %q", n, x.remembered())
	}
	if done, err := x.Tidy(t.Context(), false); len(done) > 0 || err != nil || x.remembered() != "" {
		t.Errorf("of links that have gone: %q, %v, %q", done, err, x.remembered())
	}
	x.run(x.NS, "ip", "tuntap", "add", "dev", memoryName, "mode", "tap")
	if _, err := x.lock(t.Context()); err == nil || !strings.Contains(err.Error(), "not vmnet's") {
		t.Error(err)
	}
}

func TestMemory(t *testing.T) {
	changes := []change{{0, forward6}, {2, forward4}, {2, acceptRA}, {17, proxyNDP}}
	text := formatMemory(changes)
	if want := "vmnet routed=host 0=6 2=4,a 17=p"; text != want {
		t.Errorf("%q, want %q", text, want)
	}
	if got, err := parseMemory(text + " new=1 3=z"); !slices.Equal(got, changes) || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseMemory("vmnet routed=%zz"); err == nil {
		t.Error("no error")
	}
	if got := Format([]netip.Addr{gateway.IPv4, gateway.IPv6}); got != "169.254.0.1, fe80::1" {
		t.Error(got)
	}
}
