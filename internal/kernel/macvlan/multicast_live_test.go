package macvlan_test

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

func TestLiveGroups(t *testing.T) {
	w := newWire(t)
	d := w.create(w.config())
	if err := d.Set(rtnl.Up(true)); err != nil {
		t.Fatal(err)
	}
	mdns, neighbour := net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}, net.HardwareAddr{0x33, 0x33, 0xff, 1, 2, 3}
	own := net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} // the kernel has joined it, and keeps it
	for i, test := range []struct {
		groups  []net.HardwareAddr
		changed bool
	}{
		{nil, false},
		{[]net.HardwareAddr{mdns}, true},
		{[]net.HardwareAddr{mdns}, false},
		{[]net.HardwareAddr{own, neighbour}, true},
		{[]net.HardwareAddr{mdns, neighbour}, true},
		{nil, true},
	} {
		changed, err := macvlan.SetGroups(d.Netns(), d.Link, test.groups)
		if err != nil || changed != test.changed {
			t.Errorf("%d: changed is %v, want %v: %v", i, changed, test.changed, err)
		}
		got, err := macvlan.Groups(d.Netns(), d.Link)
		sorted := cmp.Transformer("set", func(all []net.HardwareAddr) map[string]bool {
			set := map[string]bool{}
			for _, g := range all {
				set[g.String()] = true
			}
			return set
		})
		if diff := cmp.Diff(test.groups, got, sorted); diff != "" || err != nil {
			t.Errorf("%d: %v (-want +got):\n%s", i, err, diff)
		}
	}
	if _, err := macvlan.SetGroups(d.Netns(), d.Link, []net.HardwareAddr{guestMAC}); err == nil {
		t.Error("an address that is not multicast was accepted")
	}
	if _, err := macvlan.SetGroups(d.Netns(), d.Link, make([]net.HardwareAddr, vtap.MaxGroups+1)); err == nil {
		t.Error("too many groups were accepted")
	}
}
