package vswitch_test

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/rtnl"
	"vmnet/testvm/lab"
)

// TestLabInUse checks an interface with devices on it and with masters, of kinds that the test
// machine's kernel may lack.
func TestLabInUse(t *testing.T) {
	lab.Inside(t)
	for name, c := range map[string]struct {
		add       func(h *host, card int) netlink.Link
		err, note string
	}{
		"bond": {func(*host, int) netlink.Link {
			return netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})
		}, "lan0 is a member of bond0, which would no longer receive anything from it (--packet bond0)", ""},
		"vrf": {func(*host, int) netlink.Link {
			return &netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "vrf0"}, Table: 10}
		}, "", "vrf0 receives nothing from it while the switch has it"},
		"ipvlan": {func(_ *host, card int) netlink.Link {
			return &netlink.IPVlan{
				LinkAttrs: netlink.LinkAttrs{Name: "ip0", ParentIndex: card},
				Mode:      netlink.IPVLAN_MODE_L2,
			}
		}, "lan0 has ip0 (ipvlan) on it", ""},
		"vlan": {func(_ *host, card int) netlink.Link {
			return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "lan0.5", ParentIndex: card}, VlanId: 5}
		}, "", "the host receives nothing on lan0.5 (vlan) while the switch has it"},
	} {
		h, other := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
		veth(t, h, other, "lan0", 1500)
		link := c.add(h, h.link("lan0").Attrs().Index)
		if err := h.nl.LinkAdd(link); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if link.Attrs().ParentIndex == 0 {
			if err := h.nl.LinkSetDown(h.link("lan0")); err != nil {
				t.Fatal(err)
			}
			if err := h.nl.LinkSetMaster(h.link("lan0"), link); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		conn, err := rtnl.Open(h.ns)
		if err != nil {
			t.Fatal(err)
		}
		card, err := conn.Link("lan0")
		if err != nil {
			t.Fatal(err)
		}
		notes, err := endpoint.CheckInUse(h.ns, conn, card)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.err) || (text == "") != (c.err == "") ||
			!strings.Contains(strings.Join(notes, "; "), c.note) {
			t.Errorf("%s: %q, %q", name, text, notes)
		}
		if name == "vlan" {
			claimedParent(t, h, conn)
		}
		conn.Close()
	}
}

// claimedParent lets a switch claim lan0, the parent device of lan0.5.
func claimedParent(t *testing.T, h *host, c *rtnl.Conn) {
	t.Helper()
	vlan, err := c.Link("lan0.5")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := endpoint.CheckInUse(h.ns, c, vlan); err != nil {
		t.Errorf("before: %v", err)
	}
	w := openPacket(t, h, "lan0")
	if _, err := endpoint.CheckInUse(h.ns, c, vlan); err == nil ||
		!strings.Contains(err.Error(), "a switch has claimed lan0, the parent device of lan0.5") {
		t.Errorf("with a claim of lan0: %v", err)
	}
	if claimed, err := endpoint.Claimed(h.ns, "lan0"); err != nil || !claimed {
		t.Errorf("claimed: %v, %v", claimed, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if claimed, err := endpoint.Claimed(h.ns, "lan0"); err != nil || claimed {
		t.Errorf("claimed after the end: %v, %v", claimed, err)
	}
}
