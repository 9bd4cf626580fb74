package tapmgr

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/macvtap"
	"vmnet/qmp"
)

func TestGroupsOf(t *testing.T) {
	table := []string{"33:33:ff:01:02:03", "52:54:00:01:02:03", "x", "01:00:5e:00:00:fb", "01:00:5e:00:00:fb:00:01"}
	groups := []net.HardwareAddr{{0x33, 0x33, 0xff, 1, 2, 3}, {1, 0, 0x5e, 0, 0, 0xfb}}
	for name, test := range map[string]struct {
		f      qmp.RxFilter
		groups []net.HardwareAddr
		all    bool
	}{
		"a driver's":      {qmp.RxFilter{Multicast: "normal", MulticastTable: table}, groups, false},
		"none":            {qmp.RxFilter{Multicast: "none", MulticastTable: table}, nil, false},
		"all":             {qmp.RxFilter{Multicast: "all"}, nil, true},
		"too many for it": {qmp.RxFilter{Multicast: "normal", MulticastOverflow: true, MulticastTable: table}, nil, true},
		"too many for us": {qmp.RxFilter{Multicast: "normal", MulticastTable: make([]string, macvtap.MaxGroups+1)}, nil, true},
		"no driver yet":   {qmp.RxFilter{Multicast: "normal", Promiscuous: true}, nil, true},
		"nothing":         {qmp.RxFilter{Multicast: "normal"}, nil, false},
	} {
		got, all := GroupsOf(test.f)
		if diff := cmp.Diff(test.groups, got); diff != "" || all != test.all {
			t.Errorf("%s: all is %v (-want +got):\n%s", name, all, diff)
		}
	}
}

func FuzzParseRxFilters(f *testing.F) {
	f.Add(`{"return":[{"name":"vmnet-net0","multicast":"normal","multicast-table":["33:33:00:00:00:01"]}],"id":"libvirt-7"}`)
	f.Add(`{"error":{"class":"GenericError","desc":"no"}}`)
	f.Fuzz(func(t *testing.T, reply string) {
		filters, err := ParseRxFilters(reply)
		if err != nil && filters != nil {
			t.Error("filters and an error")
		}
		for _, filter := range filters {
			groups, all := GroupsOf(filter)
			if len(groups) > macvtap.MaxGroups || all && groups != nil {
				t.Errorf("%d groups, all is %v", len(groups), all)
			}
		}
	})
}

func TestParseRxFilters(t *testing.T) {
	got, err := ParseRxFilters(`{"return":[{"name":"a","promiscuous":true,"main-mac":"52:54:00:00:00:01"},{"name":"b"}],"id":"libvirt-7"}`)
	if diff := cmp.Diff([]qmp.RxFilter{{Name: "a", Promiscuous: true, MainMAC: "52:54:00:00:00:01"}, {Name: "b"}}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := ParseRxFilters(`{"error":{"class":"GenericError","desc":"no such thing"}}`); err == nil || err.Error() != `query-rx-filter: QEMU refuses: "no such thing"` {
		t.Error(err)
	}
	if _, err := ParseRxFilters(`[]`); err == nil {
		t.Error("a list is taken for a reply")
	}
}
