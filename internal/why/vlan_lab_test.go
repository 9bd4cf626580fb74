package why

import (
	"net/netip"
	"testing"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// vlans changes the VLANs of a NIC's port.
type vlans struct {
	id             string
	add, del       uint16
	pvid, untagged bool
}

// TestLabFaultsOfVLANs: net0 and net1 are on a bridge that keeps VLANs apart. Programs are slow in
// a lab host, so that the test starts none, and each fault reads only VLANs and the FDB again.
func TestLabFaultsOfVLANs(t *testing.T) {
	lab.Inside(t)
	s := newBareHost(t)
	qmptest.Start(t, qmptest.Config{Name: s.name})
	h, err := bridge.Open(s.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	err = h.Create(bridge.Config{
		Name: "br0", VLANFiltering: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"net0", "net1"} {
		s.plug(nic.Spec{NIC: id, Bridge: "br0"})
	}
	nl, err := rtnl.Open(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	toGuest, toHost := s.read("net0", s.name+"/net1", "icmp"), s.read("net0", "10.0.0.1", "icmp")
	follow := func(f *Facts) *Walk {
		(&reader{Request{NS: s.ns}, f, nl}).readBridge(s.ctx())
		return Follow(f)
	}
	native := []vlans{{id: "net0", add: 1, del: 10, pvid: true, untagged: true}}
	for _, tc := range []struct {
		make, mend []vlans
		facts      *Facts
		broken
	}{
		{
			[]vlans{{id: "net0", add: 10, del: 1, pvid: true, untagged: true}},
			native, toGuest,
			broken{
				name: "VLAN missing on the other guest's port", where: "port " + s.tap("net1"),
				why: "it is not a member of VLAN 10, which the guest is in",
			},
		},
		{
			[]vlans{{id: "net0", add: 10, del: 1, pvid: true, untagged: true}},
			native, toHost,
			broken{
				name: "VLAN missing on the bridge itself", where: "host on br0",
				why: "the bridge itself is not in VLAN 10, which the guest is in",
			},
		},
		{
			[]vlans{{id: "net0", add: 1, untagged: true}},
			[]vlans{{id: "net0", add: 1, pvid: true, untagged: true}},
			toGuest,
			broken{
				name: "no PVID", where: "port " + s.tap("net0"),
				why: "it has no PVID, so the bridge drops untagged frames",
			},
		},
		{
			[]vlans{{id: "net1", add: 1, pvid: true}},
			[]vlans{{id: "net1", add: 1, pvid: true, untagged: true}},
			toGuest,
			broken{
				name: "tagged for the other guest", where: "port " + s.tap("net1"),
				why: "frames of VLAN 1 leave it with a tag, which the guest there does not expect",
			},
		},
		{
			[]vlans{{id: "net1", add: 10, pvid: true, untagged: true}},
			[]vlans{{id: "net1", add: 1, del: 10, pvid: true, untagged: true}},
			toGuest,
			broken{
				name: "answers in another VLAN", where: "port " + s.tap("net1"),
				why: "its guest's answers belong to VLAN 10, not 1",
			},
		},
	} {
		if w := follow(tc.facts); w.Stopped() != nil {
			t.Fatalf("before %s:\n%s", tc.name, w.Text(80, nil))
		}
		s.change(tc.make)
		w := follow(tc.facts)
		if found := tc.step(w); found != nil {
			s.documented(tc.name, found)
		} else {
			t.Errorf("%s: want %s: %s; found\n%s", tc.name, tc.where, tc.why, w.Text(80, nil))
		}
		s.change(tc.mend)
	}
	if w := follow(toGuest); w.Stopped() != nil {
		t.Errorf("all is mended:\n%s", w.Text(80, nil))
	}
}

func (s *site) change(all []vlans) {
	s.Helper()
	h := nstest.Handle(s, s.ns)
	for _, v := range all {
		l, err := h.LinkByName(s.tap(v.id))
		if err != nil {
			s.Fatal(err)
		}
		if err := h.BridgeVlanAdd(l, v.add, v.pvid, v.untagged, false, true); err != nil {
			s.Fatal(err)
		}
		if v.del == 0 {
			continue
		}
		if err := h.BridgeVlanDel(l, v.del, false, false, false, true); err != nil {
			s.Fatal(err)
		}
	}
}
