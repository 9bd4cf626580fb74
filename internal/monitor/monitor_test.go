package monitor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func texts(events []Event) (all []string) {
	for _, e := range events {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", e.Kind, e.Name, e.Change, e.Text)))
	}
	return all
}

func TestDiffNICs(t *testing.T) {
	n := func(id, source string, state nic.State, port string) nic.NIC {
		return nic.NIC{VM: "P2", ID: id, Interface: "t" + id, Type: "tap", Source: source, State: state, Port: port}
	}
	old := []nic.NIC{
		n("0", "br0", "forwarding", ""), n("1", "br0", "forwarding", ""), n("2", "br0", "forwarding", ""),
		n("3", "br0", "forwarding", ""),
		{Interface: "lan0", Type: nic.TypeMacvlan},
	}
	now := []nic.NIC{
		n("4", "br0", "listening", ""), n("3", "br0", "forwarding", "vlan:7"), n("2", "br1", "forwarding", ""),
		n("1", "br2", nic.NoBridge, ""),
	}
	want := []string{
		"nic P2/0 removed tap t0", "nic P2/1 no-bridge was forwarding", "nic P2/1 moved to br2, from br0",
		"nic P2/2 moved to br1, from br0",
		`nic P2/3 port "vlan:7", was ""`, "nic P2/4 added tap t4 on br0, listening",
	}
	if diff := cmp.Diff(want, texts(diffNICs(old, now))); diff != "" {
		t.Error(diff)
	}
	if events := diffNICs(now, now); len(events) > 0 {
		t.Error(events)
	}
}

func TestDiffGuests(t *testing.T) {
	a, b := Guest{1, "P2"}, Guest{2, "P2"} // restarted under the same name
	want := []string{"guest P2 ended", "guest P2 started"}
	if diff := cmp.Diff(want, texts(diffGuests([]Guest{a}, []Guest{b}))); diff != "" {
		t.Error(diff)
	}
}

// TestLost: after lost events, what has changed meanwhile is reported.
func TestLost(t *testing.T) {
	l := func(index int, name string, master int) *rtnl.Link {
		return &rtnl.Link{Index: index, Name: name, Master: master}
	}
	old := map[int]*rtnl.Link{1: l(1, "br0", 0), 2: l(2, "a", 0), 3: l(3, "b", 1)}
	now := map[int]*rtnl.Link{1: l(1, "br0", 0), 2: l(2, "c", 1), 4: l(4, "d", 1)}
	want := []string{
		"link c renamed from a", "port c joined br0", "link b removed", "link d added", "port d joined br0",
	}
	if diff := cmp.Diff(want, texts(diffAll(old, now))); diff != "" {
		t.Error(diff)
	}
}

// TestLiveEvents follows a link from its beginning to its end, and looks at the NICs meanwhile.
func TestLiveEvents(t *testing.T) {
	ns := nstest.New(t)
	h := nstest.Handle(t, ns)
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	want := map[string]bool{
		"link br9 added bridge": false, "link d9 added veth": false, "port d9 joined br9": false, "link d9 up": false,
		"port d9 left br9": false, "link e9 renamed from d9": false, "link e9 removed veth": false,
		"nic P2/net0 added tap x on br9, up": false,
	}
	missing := len(want)
	looks := 0
	cfg := Config{
		NS: ns, NL: nl, Guests: func() ([]Guest, error) { return nil, nil },
		NICs: func(context.Context) ([]nic.NIC, error) {
			if looks++; looks == 1 {
				return nil, nil
			}
			return []nic.NIC{{VM: "P2", ID: "net0", Interface: "x", Type: "tap", Source: "br9", State: nic.Up}}, nil
		},
		Report: func(e Event) error {
			text := texts([]Event{e})[0]
			if seen, ok := want[text]; ok && !seen {
				want[text] = true
				missing--
			}
			if missing == 0 {
				cancel()
			}
			return nil
		},
	}
	change := func() {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br9"}}
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "d9"}, PeerName: "p9"}
		for _, do := range []func() error{
			func() error { return h.LinkAdd(bridge) }, func() error { return h.LinkAdd(cable) },
			func() error { return h.LinkSetMaster(cable, bridge) }, func() error { return h.LinkSetUp(cable) },
			func() error { return h.LinkSetDown(cable) }, func() error { return h.LinkSetNoMaster(cable) },
			func() error { return h.LinkSetName(cable, "e9") }, func() error { return h.LinkDel(cable) },
		} {
			if err := do(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := Run(ctx, cfg, change); err != nil || missing > 0 {
		t.Errorf("%v; seen: %v", err, want)
	}
}
