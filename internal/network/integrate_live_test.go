package network

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/rivals"
)

// beside makes another program's firewall in the host.
func (x *h) beside(rival func(testing.TB, *netns.NS) *rivals.Rival) *rivals.Rival {
	r := rival(x, x.host)
	x.m.Firewall = r.Runs
	return r
}

// TestLiveIntegrate: beside the real programs, a network does not work and check says why; it works
// once it is integrated, also after they have loaded their rules again; and nothing of it is left
// with them afterwards.
func TestLiveIntegrate(t *testing.T) {
	for name, start := range rivals.All {
		t.Run(name, func(t *testing.T) {
			x := newHost(t)
			r := x.beside(start)
			r.Start()
			before := r.Snapshot()
			n := x.create(full().Network)
			x.answers(x.wan, ":7")
			web, db := x.guest("lab", webMAC).lease(""), x.guest("lab", dbMAC).lease("")
			x.answers(web.ns, ":80")
			x.blocked("out", web, wanIP+":7")
			c, err := x.m.Check(x.ctx())
			if err != nil || len(c.Differences) == 0 || c.Differences[0].What != "firewall" ||
				!strings.Contains(c.Differences[0].Found, " of "+name+" ") ||
				!strings.HasSuffix(c.Differences[0].Mend, "; or vmnet network apply lab --integrate") {
				t.Fatalf("%+v, %v", c, err)
			}

			if _, changed, err := x.m.Integrate(x.ctx(), "lab", true); err != nil || !changed {
				t.Fatalf("%v, %v", changed, err)
			}
			works := func() {
				t.Helper()
				x.consistent()
				if _, changed, err := x.m.Apply(x.ctx(), "lab"); err != nil || changed {
					t.Errorf("a second apply: %v, %v", changed, err)
				}
				x.wants("out by IPv4", x.ask(web.ns, wanIP+":7"), hostIP)
				x.wants("out by IPv6", x.ask(web.ns, "["+wanIP6+"]:7"), hostIP6)
				x.wants("a forward", x.ask(x.wan, hostIP+":8080"), wanIP)
				x.wants("a guest", x.ask(db.ns, "10.66.0.11:80"), db.ip)
			}
			web.globalIPv6(n.IPv6)
			works()
			if x.bridgeNetfilter("1") {
				x.ip(db.ns, "addr", "flush", "dev", "eth0", "scope", "global")
				db.lease("")
				works()
			}
			r.Must(r.Reload...)
			works()

			if _, changed, err := x.m.Integrate(x.ctx(), "lab", false); err != nil || !changed {
				t.Fatalf("%v, %v", changed, err)
			}
			x.wants("after --integrate=false", r.Snapshot(), before)
			x.blocked("out again", web, wanIP+":7")
			if _, _, err := x.m.Integrate(x.ctx(), "lab", true); err != nil {
				t.Fatal(err)
			}
			if err := x.m.Delete(x.ctx(), "lab", true); err != nil {
				t.Fatal(err)
			}
			x.wants("after delete", r.Snapshot(), before)
		})
	}
}

// blocked reports a connection that is neither dropped nor rejected.
func (x *h) blocked(what string, g *guest, address string) {
	x.Helper()
	c, err := x.dial(g.ns, dropTimeout, "tcp", address)
	if err == nil {
		_ = c.Close()
		x.Errorf("%s: it is connected", what)
	}
}

// TestLiveIntegrateFails: an error in the place of the last step, and a kill after each step, leave
// nothing with the other firewalls once the network is gone.
func TestLiveIntegrateFails(t *testing.T) {
	for name, start := range rivals.All {
		t.Run(name, func(t *testing.T) {
			x := newHost(t)
			r := x.beside(start)
			r.Start()
			before := r.Snapshot()
			wanted := full()
			wanted.Integrate, wanted.DHCP = true, false
			create := func() error { w := wanted; return x.m.Create(x.ctx(), w) }
			n := x.steps(create)
			first := n - map[string]int{"Docker": 4, "ufw": 2, "firewalld": 3}[name]
			x.m.Run = at(n-1, false, false)
			if err := create(); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			x.wants("left by an error", r.Snapshot(), before)
			for i := first; i < n; i++ {
				x.m.Run = at(i, true, true)
				if err := create(); !errors.Is(err, errBroken) {
					t.Fatalf("step %d: %v", i, err)
				}
				x.m.Run = nil
				if i%2 == 0 {
					if _, _, err := x.m.Apply(x.ctx(), "lab"); err != nil {
						t.Fatal(err)
					}
					x.consistent()
				}
				if err := x.m.Delete(x.ctx(), "lab", false); err != nil {
					t.Fatal(err)
				}
				x.wants(fmt.Sprintf("left by a kill in step %d", i), r.Snapshot(), before)
			}
		})
	}
}

// TestLiveIntegrateBesideOthers: what an administrator has told the firewall stays.
func TestLiveIntegrateBesideOthers(t *testing.T) {
	x := newHost(t)
	r := x.beside(rivals.All["ufw"])
	r.Start()
	r.Must("ufw", "route", "allow", "in", "on", "lab", "comment", "mine")
	before := r.Snapshot()
	n := full().Network
	n.Integrate, n.DHCP = true, false
	x.create(n)
	if added := r.Must("ufw", "show", "added"); !strings.Contains(added, "ufw route allow in on lab comment 'mine'") ||
		!strings.Contains(added, "ufw route allow out on lab comment 'vmnet-lab'") {
		t.Error(added)
	}
	x.consistent()
	err := x.m.Replace(x.ctx(), "lab", func(n *config.Network) error { n.Forwards = nil; return nil })
	if err != nil {
		t.Fatal(err)
	}
	x.wants("without forwards", r.Snapshot(), before)

	// What ufw knows is found also when it is off, and again when the bridge is gone.
	if err := x.m.Replace(x.ctx(), "lab", func(n *config.Network) error {
		n.Forwards = full().Forwards
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.Must("ufw", "disable")
	x.ip(x.host, "link", "del", "lab")
	if err := x.m.Delete(x.ctx(), "lab", false); err != nil {
		t.Fatal(err)
	}
	r.Must("ufw", "--force", "enable")
	x.wants("after delete", r.Snapshot(), before)
}
