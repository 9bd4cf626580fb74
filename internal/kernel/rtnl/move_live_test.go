package rtnl

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// A host with everything that moves. eth1 has another way out, which stays.
const movedHost = `
link add eth0 address 02:00:00:00:00:01 type veth peer name p0
link add eth1 type veth peer name p1
link add br0 type bridge
link set br0 addrgenmode none
link set p0 up
link set p1 up
link set eth0 up
link set eth1 up
link set br0 up
addr add 192.0.2.2/24 brd 192.0.2.255 dev eth0 label eth0:1
addr add 192.0.2.3/24 dev eth0
addr add 192.0.2.4/24 dev eth0 valid_lft 5000 preferred_lft 4000
addr add 192.0.2.5/32 dev eth0 metric 77
addr add 10.9.0.1 peer 10.9.0.2 dev eth0
addr add 10.8.0.1/24 dev eth0 noprefixroute
addr add 198.51.100.2/24 dev eth1
addr add 2001:db8::2/64 dev eth0 nodad
addr add 2001:db8:0:1::2/64 dev eth0 valid_lft 5000 preferred_lft 0 nodad
addr add 2001:db8:0:2::2/64 dev eth0 noprefixroute nodad
addr add 2001:db8:9::2/64 dev eth1 nodad
route add 10.8.0.0/24 dev eth0 metric 9
route add default via 192.0.2.1 metric 100 mtu 1400
route add default via 198.51.100.1 metric 200
route add 10.1.0.0/16 via 10.8.0.9 src 192.0.2.3 proto static
route add 10.2.0.0/16 nexthop via 192.0.2.1 weight 3 nexthop via 198.51.100.1
route add 10.3.0.0/16 via 203.0.113.1 dev eth0 onlink
route add 10.4.0.0/16 via 192.0.2.1 table 100
route add 10.5.0.0/16 dev eth0 scope link
route add default via 2001:db8::1 metric 50
route add 2001:db8:7::/48 via fe80::1 dev eth0 expires 900
route add 2001:db8:8::/48 nexthop via 2001:db8::1 nexthop via 2001:db8:9::1
route add 2001:db8:a::/48 via fe80::1 dev eth0 table 100 proto ra
nexthop add id 11 via 192.0.2.1 dev eth0
nexthop add id 12 via 198.51.100.1 dev eth1
nexthop add id 13 dev eth0 proto static
nexthop add id 14 via 203.0.113.7 dev eth0 onlink
nexthop add id 15 via fe80::1 dev eth0
nexthop add id 16 group 11,3/12
nexthop add id 17 group 11/14 type resilient buckets 4 idle_timer 60
-6 nexthop add id 18 dev eth0
nexthop add id 19 blackhole
route add 10.21.0.0/16 nhid 11 src 192.0.2.3 metric 7
route add 10.22.0.0/16 nhid 13 scope link
route add 10.23.0.0/16 nhid 14 table 100
route add 10.24.0.0/16 nhid 16 mtu 1300
route add 10.25.0.0/16 nhid 17
route add 10.26.0.0/16 nhid 19
route add 10.27.0.0/16 via 10.22.0.1
route add 2001:db8:21::/48 nhid 15 src 2001:db8::2 expires 900
route add 2001:db8:22::/48 nhid 18
rule add iif eth0 lookup 100 priority 500
rule add from 192.0.2.3 lookup 100 priority 501
rule add oif eth0 lookup 100 priority 502
-6 rule add not iif eth0 lookup 100 priority 503
neigh add 192.0.2.1 lladdr 02:00:00:00:00:aa dev eth0
neigh add 192.0.2.9 lladdr 02:00:00:00:00:ab dev eth0 nud stale
neigh add proxy 192.0.2.77 dev eth0
neigh add 2001:db8::1 lladdr 02:00:00:00:00:aa dev eth0
neigh add fe80::1 lladdr 02:00:00:00:00:aa dev eth0 router
`

// ipBatch runs a batch of ip(8) in ns.
func ipBatch(t *testing.T, ns *netns.NS, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			ip(t, ns, args...)
		}
	}
}

func ip(t *testing.T, ns *netns.NS, args ...string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command("ip", args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Numbers that differ each time.
var volatile = regexp.MustCompile(`(@\S+|valid_lft|preferred_lft|expires) [0-9]+sec|[0-9]+sec`)

// index begins a line about an address.
var index = regexp.MustCompile(`(?m)^[0-9]+: `)

// hostSide is what ip(8) shows of a host.
func hostSide(t *testing.T, ns *netns.NS, link string) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"-o", "addr", "show", "dev", link},
		{"nexthop"},
		{"-4", "-o", "route", "show", "table", "all"},
		{"-6", "-o", "route", "show", "table", "all"},
		{"rule"},
		{"-6", "rule"},
		{"neigh", "show", "dev", link},
		{"neigh", "show", "proxy"},
	} {
		var kept []string
		for line := range strings.Lines(ip(t, ns, args...)) {
			// The kernel makes these with an address, or while the link is up.
			if !strings.HasPrefix(line, "anycast") && !strings.HasPrefix(line, "multicast ff00") {
				kept = append(kept, strings.Join(strings.Fields(line), " "))
			}
		}
		if slices.Contains(args, "route") || slices.Contains(args, "neigh") {
			slices.Sort(kept) // the order is by the time of making
		}
		b.WriteString(strings.Join(args, " ") + "\n" + strings.Join(kept, "\n") + "\n")
	}
	return volatile.ReplaceAllString(b.String(), "SEC")
}

func TestLiveHostMoves(t *testing.T) {
	t.Run("routes say where they lead", func(t *testing.T) { hostMoves(t, "1") })
	t.Run("routes name their nexthop object only", func(t *testing.T) { hostMoves(t, "0") })
}

func hostMoves(t *testing.T, compat string) {
	ns := nstest.New(t)
	c := open(t, ns)
	for name, value := range map[string]string{
		"ipv6/conf/default/accept_dad": "0", "ipv4/nexthop_compat_mode": compat,
	} {
		err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644) })
		if err != nil {
			t.Fatal(err)
		}
	}
	ipBatch(t, ns, movedHost)
	eth0, err := c.Link("eth0")
	br, brErr := c.Link("br0")
	if err != nil || brErr != nil {
		t.Fatal(err, brErr)
	}
	before := hostSide(t, ns, "eth0")
	h, err := c.HostConfig(eth0)
	if err != nil {
		t.Fatal(err)
	}
	var b Batch
	b.Set("master", eth0.Index, Master(br.Index))
	b.Take(h, br)
	if err := c.Do(&b); err != nil {
		t.Fatal(err)
	}
	moved := strings.ReplaceAll(hostSide(t, ns, "br0"), "br0", "eth0")
	if want := index.ReplaceAllString(before, "N: "); index.ReplaceAllString(moved, "N: ") != want {
		t.Errorf("on the bridge:\n%s\nwant:\n%s", moved, want)
	}
	h, err = c.HostConfig(br)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"11", "13", "14", "15", "18"} { // the kernel removes them without a carrier
		ip(t, ns, "nexthop", "del", "id", id)
	}
	var back Batch
	back.Set("no master", eth0.Index, Master(0))
	back.Take(h, eth0)
	if err := c.Do(&back); err != nil {
		t.Fatal(err)
	}
	if after := hostSide(t, ns, "eth0"); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// TestLiveBatchBounds: a long batch is answered whole, and one that is too long is refused.
func TestLiveBatchBounds(t *testing.T) {
	ns := nstest.New(t)
	c := open(t, ns)
	var b Batch
	for range maxBatch {
		b.Set("lo", 1, Up(true))
	}
	if err := c.Do(&b); err != nil {
		t.Error(err)
	}
	b.Set("lo", 1, Up(true))
	if err := c.Do(&b); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	var none Batch
	none.Set("link 999", 999, Up(true))
	const want = "link 999: no such network device"
	if err := errors.Join(c.Do(&Batch{}), c.Do(&none)); err == nil || err.Error() != want {
		t.Error(err)
	}
}
