package change

import (
	"strings"
	"testing"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/leaktest"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestCommand: the command has what differs, and there is none for what cannot change in place.
func TestCommand(t *testing.T) {
	r, ok := nic.ParseRecord("vmnet vm=P2 nic=net0 type=tap source=br0 port=vlan:10 mac=52:54:00:00:00:01")
	if !ok {
		t.Fatal("record")
	}
	for _, tc := range []struct {
		edit func(*nic.Spec)
		want string
	}{
		{func(s *nic.Spec) { s.Bridge = "br1" }, "vmnet set --vm P2 --nic net0 --bridge br1"},
		{
			func(s *nic.Spec) { s.Port.VLAN, s.Port.Isolated = 20, true },
			"vmnet set --vm P2 --nic net0 --vlan 20 --isolated",
		},
		{func(s *nic.Spec) { s.Bridge, s.Network = "", "lab" }, "vmnet set --vm P2 --nic net0 --network lab"},
		{func(s *nic.Spec) { s.Model = "e1000" }, ""},
		{func(s *nic.Spec) { s.Bridge, s.Routed = "", "eth0" }, ""},
		{func(*nic.Spec) {}, ""},
	} {
		spec := r.Spec()
		tc.edit(&spec)
		if got := Command(r, spec); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

func TestRefuse(t *testing.T) {
	unsecure := func(s *nic.Spec) { s.Security, s.IP = nic.Security{}, nil }
	for alias, tc := range map[string]struct {
		edit func(*nic.Spec)
		want string
	}{
		"type=macvtap source=eth0 mode=vepa rx=none": {func(s *nic.Spec) { s.Lower.Device = "eth1" }, "for good"},
		"type=ipvtap source=eth0 mode=l2 rx=none":    {func(s *nic.Spec) { s.Lower.Mode = "l3" }, "have one mode"},
		"type=socket source=sw0 switch=on":           {func(s *nic.Spec) { s.Switch, s.Bridge = nil, "br0" }, "from switch to switch"},
		"type=vhost-user source=sw0 switch=on":       {func(s *nic.Spec) { s.LinkDown = true }, "whenever its switch connects"},
		"type=macvtap source=eth0 mode=vepa rx=all":  {func(s *nic.Spec) { s.Lower, s.Bridge = nil, "br0" }, "for good"},
		"type=routed source=eth0 ip=192.0.2.7":       {func(s *nic.Spec) { s.IP = nil }, "by which packets find it"},
		"type=ipvtap source=eth0 security=mac mode=l2 rx=none ip=192.0.2.7": {
			func(s *nic.Spec) { s.Lower.Addrs = nil }, "by which packets find it",
		},
		"type=macvtap source=eth0 security=all mode=vepa rx=none ip=192.0.2.7": {unsecure, ""},
		"type=socket source=sw0 switch=on security=all ip=192.0.2.7":           {unsecure, ""},
	} {
		r, ok := nic.ParseRecord("vmnet vm=P2 nic=net0 " + alias + " mac=52:54:00:00:00:01")
		if !ok {
			t.Fatal(alias)
		}
		spec := r.Spec()
		tc.edit(&spec)
		err := Refuse(r, nicflags.Differences(r.Spec(), spec))
		if (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", alias, err, tc.want)
		}
	}
}
