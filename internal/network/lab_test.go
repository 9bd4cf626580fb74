package network

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmnet/bridge/vxlan"
	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// TestLabIsolated: guests of an isolated network do not reach each other, neither directly nor by
// the host, but the server, the host and the world.
func TestLabIsolated(t *testing.T) {
	lab.Inside(t)
	x := newHost(t)
	n := full().Network
	n.Isolated, n.Forwards = true, nil
	x.create(n)
	x.consistent()
	web, db := x.guest("lab", webMAC).lease(""), x.guest("lab", dbMAC).lease("")
	x.answers(web.ns, ":80")
	x.answers(x.wan, ":7")
	for _, on := range []string{"0", "1"} {
		x.bridgeNetfilter(on)
		x.drops("a guest", db.ns, "10.66.0.11:80")
		x.wants("the world", x.ask(db.ns, wanIP+":7"), hostIP)
		x.ip(db.ns, "route", "add", "10.66.0.11/32", "via", "10.66.0.1")
		x.drops("a guest by the host", db.ns, "10.66.0.11:80")
		x.ip(db.ns, "route", "del", "10.66.0.11/32")
		x.ip(db.ns, "addr", "flush", "dev", "eth0")
		db.lease("")
	}
	x.wants("the host", x.ask(x.host, "10.66.0.11:80"), "10.66.0.1")
}

// TestLabVLANUplink: a VLAN of an interface, and of a bridge that filters VLANs, whose memberships
// the network ends.
func TestLabVLANUplink(t *testing.T) {
	lab.Inside(t)
	x := newLAN(t)
	x.ip(x.wan, "link", "add", "link", "e1", "name", "e1.100", "type", "vlan", "id", "100")
	x.ip(x.wan, "link", "set", "e1.100", "up")
	x.ip(x.wan, "addr", "add", "198.51.100.1/24", "dev", "e1.100")
	x.answers(x.wan, ":7")
	there := func() string {
		vlans, err := x.run(x.host, "bridge", "vlan", "show")
		if err != nil {
			t.Fatal(err)
		}
		return x.left() + x.ip(x.host, "-br", "link", "show", "type", "vlan") + vlans
	}
	for i, prepare := range []string{
		"link set lan0 down", "link add br0 type bridge vlan_filtering 1", "link set br0 type bridge vlan_filtering 0",
	} {
		x.ip(x.host, strings.Fields(prepare)...)
		port := []string{"lan0.100", "br0.100", "br0.100"}[i]
		if i == 1 {
			x.ip(x.host, "link", "set", "lan0", "master", "br0")
			x.ip(x.host, "link", "set", "br0", "up")
		}
		if i == 0 { // the first create brings it up
			if err := x.m.Create(x.ctx(), Wanted{Network: onLAN("lan0.100")}); err != nil {
				t.Fatal(err)
			}
			if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
				t.Fatal(err)
			}
		}
		nstest.Eventually(t, patience, "the carrier", func() bool {
			parent, _, _ := strings.Cut(port, ".")
			return strings.Contains(x.ip(x.host, "link", "show", parent), "state UP")
		})
		before := there()
		create := func() error { return x.m.Create(x.ctx(), Wanted{Network: onLAN("lan0.100")}) }
		steps := x.steps(create)
		if i != 1 {
			steps = 0 // the filtering bridge has all of them
		}
		for i := range steps {
			x.m.Run = at(i, false, false)
			if err := create(); !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", i, err)
			}
			x.wants(fmt.Sprintf("left by an error in step %d", i), there(), before)
			x.m.Run = at(i, true, true)
			if err := create(); !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", i, err)
			}
			x.m.Run = nil
			if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
				t.Fatal(err)
			}
			x.wants(fmt.Sprintf("left by a kill in step %d", i), there(), before)
		}
		x.create(onLAN("lan0.100"))
		x.consistent()
		if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || changed {
			t.Errorf("a second apply: %v, changed %v", err, changed)
		}
		g := x.guest("lan", webMAC)
		x.ip(g.ns, "addr", "add", "198.51.100.9/24", "dev", "eth0")
		x.wants("VLAN 100 by "+port, x.ask(g.ns, "198.51.100.1:7"), "198.51.100.9")
		x.ip(x.host, "link", "show", port)
		x.ip(x.host, "link", "del", fmt.Sprintf("g%d", x.guests))
		x.ip(x.host, "link", "del", port)
		c, err := x.m.Check(x.ctx())
		if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "uplink" {
			t.Errorf("without its subinterface: %+v, %v", c, err)
		}
		if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || !changed {
			t.Errorf("apply: %v, changed %v", err, changed)
		}
		x.consistent()
		if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
			t.Fatal(err)
		}
		x.wants("left", there(), before)
	}
}

// TestLabSegmentMapFails: an error in the place of each step leaves what there was before: nothing,
// the former map, or the segment of one VNI.
func TestLabSegmentMapFails(t *testing.T) {
	lab.Inside(t)
	x := newHost(t)
	onMap := func(list string) *config.Uplink {
		m, err := vxlan.ParseMap(list)
		if err != nil {
			t.Fatal(err)
		}
		u := onSegment(hostIP, wanIP).Uplink
		u.VXLAN.VNI, u.VXLAN.Map = 0, m
		*u = config.NewVXLAN("seg", *u.VXLAN)
		return u
	}
	before := x.left()
	mapped := onSegment(hostIP, wanIP)
	mapped.Uplink = onMap("10:10010,20-22:10020-10022")
	create := func() error { return x.m.Create(x.ctx(), Wanted{Network: mapped}) }
	for i := range x.steps(create) {
		x.m.Run = at(i, false, false)
		if err := create(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.wants("left", x.left(), before)
	}
	x.m.Run = nil
	x.create(onSegment(hostIP, wanIP))
	for _, list := range []string{"10:10010,20-22:10020-10022", "10:10011,22-30:10022-10030"} {
		change := func() error {
			return x.m.Replace(x.ctx(), "seg", func(n *config.Network) error { n.Uplink = onMap(list); return nil })
		}
		steps := x.steps(change)
		if steps < 3 {
			t.Errorf("%s: %d steps", list, steps)
		}
		for i := range steps {
			x.m.Run = at(i, false, false)
			if err := change(); !errors.Is(err, errBroken) {
				t.Fatalf("%s: step %d: %v", list, i, err)
			}
			x.m.Run = nil
			x.consistent()
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		x.consistent()
	}
	x.replace(func(n *config.Network) { n.Uplink = onSegment(hostIP, wanIP).Uplink })
	if l, err := x.m.nl.Link("vx77"); err != nil || l.Port == nil {
		t.Errorf("one VNI in place of the map: %+v, %v", l, err)
	}
	if err := x.m.Delete(x.ctx(), "seg", false); err != nil {
		t.Fatal(err)
	}
	x.wants("left", x.left(), before)
}
