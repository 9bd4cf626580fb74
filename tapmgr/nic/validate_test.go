package nic

import (
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
)

// secured is a NIC with all of port security.
func secured() Spec {
	return Spec{
		Target: Target{VM: "P2"}, Bridge: "br0", IP: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
		Security: Security{
			Checks: portsec.All, EtherTypes: []portsec.EtherType{0x88f7},
			Nets: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")},
		},
	}
}

// TestRecordKeepsSecurity: an alias keeps all that the frames are compared with.
func TestRecordKeepsSecurity(t *testing.T) {
	s := secured().WithDefaults()
	r := Record{
		VM: s.VM, NIC: s.NIC, Type: TypeTap, Source: s.Bridge, IP: s.OwnIPs(), Security: s.Security, MAC: s.MAC,
		Model: s.Model, Queues: 1,
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := ParseRecord(text)
	if want := r.PortSecurity(); !ok || !got.PortSecurity().Equal(want) ||
		got.Security.String() != s.Security.String() {
		t.Errorf("%s: %v, %v, want %v", text, got.PortSecurity(), ok, want)
	}
	for _, bad := range []string{"security=stp", "security=all types=0x8100", "nets=lab"} {
		if _, ok := ParseRecord(strings.Replace(text, "security=all types=0x88f7", bad, 1)); ok {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestValidateSecurity(t *testing.T) {
	for want, change := range map[string]func(*Spec){
		"": func(*Spec) {},
		"need a network, an uplink or port security": func(s *Spec) { s.Security = Security{} },
		"need port security, which drops others":     func(s *Spec) { s.IP, s.Security.Checks = nil, 0 },
		"drops the tagged frames": func(s *Spec) {
			s.Port.Trunk = []brport.VLANRange{{First: 2, Last: 3}}
		},
		"ip needs the NIC's own addresses": func(s *Spec) { s.IP, s.Security.Nets = nil, nil },
		"is no host's own": func(s *Spec) {
			s.Security.Nets = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4")}
		},
	} {
		s := secured()
		change(&s)
		if err := s.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestOwnIPsOfAnIPVtap: those by which the kernel delivers are the guest's own.
func TestOwnIPsOfAnIPVtap(t *testing.T) {
	s := Spec{
		Lower:    &Lower{Kind: vtap.IPVtap, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}},
		Security: Security{Checks: portsec.IP},
	}
	if got := FormatIPs(s.OwnIPs()); got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
}
