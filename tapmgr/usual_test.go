package tapmgr

import (
	"net/netip"
	"slices"
	"testing"

	"vmnet/tapmgr/nic"
)

func TestUsualAddresses(t *testing.T) {
	own := netip.MustParseAddr("fe80::7")
	s := Sighting{NIC: nic.NIC{IP: []netip.Addr{own}}}
	for _, a := range []string{"192.0.2.1", "169.254.0.1", "2001:db8::1", "fe80::1", "fe80::7"} {
		s.Addresses = append(s.Addresses, nic.Address{IP: netip.MustParseAddr(a)})
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), own}
	if got := s.Usual(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
