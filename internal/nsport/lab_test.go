package nsport

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// reaches reports whether a connection from one namespace to an address of the other one is made.
func (x *h) reaches(from, to *netns.NS, addr string, within time.Duration) bool {
	x.Helper()
	at := net.JoinHostPort(addr, "80")
	var l net.Listener
	x.do(to.Do(func() (err error) { l, err = net.Listen("tcp", at); return err }))
	defer l.Close()
	err := from.Do(func() error {
		c, err := net.DialTimeout("tcp", at, within)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return err == nil
}

// never is how long a connection is tried that must not be made.
const never = time.Second

// in returns a Spec for a namespace of its own.
func (x *h) in(ip string) (*netns.NS, Spec) {
	x.Helper()
	ns := nstest.New(x)
	return ns, Spec{
		Netns:     ns.Path(),
		ID:        "n" + ip[len("10.0.0."):],
		Addresses: []netip.Prefix{netip.MustParsePrefix(ip + "/24")},
	}
}

// TestLabVLANs: containers in one VLAN of a bridge reach each other, and those in another do not.
func TestLabVLANs(t *testing.T) {
	lab.Inside(t)
	x := newHost(t)
	x.do(x.nl.Create("bridge", rtnl.Name("br1"), rtnl.BridgeVLANFiltering(true), rtnl.Up(true)))
	var all []*netns.NS
	for ip, vlan := range map[string]int{"10.0.0.11": 20, "10.0.0.12": 20, "10.0.0.13": 30} {
		ns, s := x.in(ip)
		s.Bridge, s.Port = "br1", brport.Settings{VLAN: vlan}
		x.attach(s)
		if again := x.attach(s); again.Changed {
			t.Errorf("%s: it has changed", ip)
		}
		all = append(all, ns)
		for i, other := range all[:len(all)-1] {
			_ = i
			addrs := map[bool]time.Duration{true: patience, false: never}
			want := x.vlan(ns) == x.vlan(other)
			if got := x.reaches(ns, other, x.addr(other), addrs[want]); got != want {
				t.Errorf("%s reaches %s: %v, want %v", ip, x.addr(other), got, want)
			}
		}
	}
}

// vlan returns the VLAN of the attachment in ns, and addr its address.
func (x *h) vlan(ns *netns.NS) string        { return x.of(ns).Port }
func (x *h) addr(ns *netns.NS) (addr string) { return x.of(ns).Addresses[0].Addr().String() }

func (x *h) of(ns *netns.NS) Info {
	x.Helper()
	inode, err := ns.Inode()
	x.do(err)
	t, err := openTarget(x.ctx(), ns.Path())
	x.do(err)
	defer t.close()
	_, all, err := x.m.look(x.ctx(), t)
	x.do(err)
	for _, a := range all {
		if a.isIn(t) {
			return x.m.describe(a)
		}
	}
	x.Fatalf("nothing is attached to netns %d", inode)
	return Info{}
}

// TestLabIPVlan: ipvlans on one parent device reach each other, are shown as what shares it, and
// keep its mode.
func TestLabIPVlan(t *testing.T) {
	lab.Inside(t)
	x := newHost(t)
	before := x.links()
	one, s := x.in("10.0.0.11")
	s.IPVlan = "eth0"
	done := x.attach(s)
	if !done.Changed || done.Mode != "l2" {
		t.Errorf("%+v", done)
	}
	if again := x.attach(s); again.Changed {
		t.Error("it has changed")
	}
	two, second := x.in("10.0.0.12")
	second.IPVlan, second.Mode = "eth0", "l3"
	_, err := x.m.Attach(x.ctx(), second)
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "l2 of eth0 in netns ") ||
		!strings.Contains(err.Error(), "would become l3 (use --mode l2)") {
		t.Errorf("another mode: %v", err)
	}
	second.Mode = ""
	x.attach(second)
	if !x.reaches(one, two, "10.0.0.12", patience) {
		t.Error("one does not reach two")
	}
	// A guest's ipvtap would change them too.
	guest := x.m.maker.New(nic.Spec{
		Target: nic.Target{VM: "P2"}, NIC: "net0",
		Lower: &nic.Lower{Kind: vtap.IPVtap, Device: "eth0", Mode: "l3", Addrs: second.Addresses},
	}, nic.PhaseAttaching)
	if err := guest.PlanInterface(x.ctx()); !errors.Is(err, syscall.EBUSY) ||
		!strings.Contains(err.Error(), "l2 bridge would become l3 bridge for eth0 in netns ") {
		t.Errorf("an ipvtap beside them: %v", err)
	}
	links, _, err := x.m.Links(x.ctx())
	x.do(err)
	shared := 0
	for _, l := range links {
		if l.Type == IPVlan && l.Source == "eth0" && l.Mode == "l2" && !l.Netns.Own {
			shared++
		}
	}
	if shared != 2 {
		t.Errorf("%d ipvlans share eth0: %+v", shared, links)
	}
	third := x.onParent()
	if _, err := x.m.Attach(x.ctx(), third); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a macvlan beside ipvlans: %v", err)
	}
	for _, id := range []string{"n11", "n12"} {
		if gone := x.detach(Which{Netns: map[string]*netns.NS{"n11": one, "n12": two}[id].Path(), ID: id}); len(
			gone.Removed,
		) != 1 {
			t.Errorf("%s: %+v", id, gone)
		}
	}
	x.wants("left", x.links(), before)
	// An ipvtap that somebody has made here has the mode too.
	eth0 := x.link(x.nl, "eth0")
	x.do(x.nl.Create("ipvtap", rtnl.Name("tap0"), rtnl.Lower(eth0.Index), macvlan.IPVlanMode("l3")))
	if _, err := x.m.Attach(x.ctx(), s); err == nil ||
		!strings.Contains(err.Error(), "l3 of tap0 in netns here") {
		t.Errorf("beside an ipvtap in l3: %v", err)
	}
}

// TestLabFails: an error in each step leaves nothing on an older kernel either.
func TestLabFails(t *testing.T) {
	lab.Inside(t)
	TestLiveFails(t)
	TestLiveGoesWithItsNetns(t)
	TestLiveForeignAlias(t)
}
