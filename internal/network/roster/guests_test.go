package roster

import (
	"net"
	"net/netip"
	"testing"

	"vmnet/internal/network/config"
)

func guest(index int, vm, id string, ip ...string) Guest {
	g := Guest{VM: vm, NIC: id, Index: index, MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(index)}}
	for _, a := range ip {
		g.IP = append(g.IP, netip.MustParseAddr(a))
	}
	return g
}

// TestNamed: the first guest that asks has a name or an address, after the hosts of the file and
// the guests to which forwards are bound.
func TestNamed(t *testing.T) {
	n := &config.Network{
		Name: "lab", Subnet: netip.MustParsePrefix("10.66.0.0/24"), IPv6: netip.MustParsePrefix("fd66:1:2:3::/64"),
		Hosts: []config.Host{
			{Name: "web", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, IP: netip.MustParseAddr("10.66.0.11")},
		},
		Forwards: []config.Forward{{
			Protocol: "tcp", First: 22, Last: 22, Guest: "bound",
			Bound: config.Binding{MAC: "52:54:00:00:00:02", IP: netip.MustParseAddr("10.66.0.12")},
		}},
	}
	for _, tc := range []struct {
		guest    Guest
		name, ip string
	}{
		{guest(1, "web", "net0", "fd66:1:2:3::11", "10.66.0.30"), "web", "[10.66.0.11 fd66:1:2:3::11]"},
		{guest(2, "Bound", "net0"), "bound", "[10.66.0.12]"},
		{guest(3, "bound", "net0", "10.66.0.12", "fd66:1:2:3::1"), "bound-net0", "[]"},
		{guest(4, "P2", "net0", "10.66.0.20"), "p2", "[10.66.0.20]"},
		{guest(5, "P2", "net1", "10.66.0.20", "10.67.0.1"), "p2-net1", "[]"},
		{guest(6, "p2", "net1"), "", "[]"},
		{guest(7, "wpad", "net0"), "wpad-net0", "[]"},
		{guest(8, "名前", "net0"), "", "[]"},
	} {
		all := []Guest{}
		for i := 1; i < tc.guest.Index; i++ {
			all = append(all, guest(i, []string{"web", "Bound", "bound", "P2", "P2", "p2", "wpad"}[i-1],
				[]string{"net0", "net0", "net0", "net0", "net1", "net1", "net0"}[i-1]))
			if i == 4 {
				all[3].IP = guest(4, "", "", "10.66.0.20").IP
			}
		}
		named := Named(n, append(all, tc.guest))
		got := named[len(named)-1]
		ips := "[]"
		if len(got.IP) > 0 {
			ips = ""
			for _, a := range got.IP {
				ips += " " + a.String()
			}
			ips = "[" + ips[1:] + "]"
		}
		if got.Name != tc.name || ips != tc.ip {
			t.Errorf("%s: called %q with %s, want %q with %s", tc.guest.Title(), got.Name, ips, tc.name, tc.ip)
		}
	}
}

func TestSum(t *testing.T) {
	sums := map[string]bool{}
	for _, guests := range [][]Guest{
		nil,
		{guest(1, "P2", "net0")},
		{guest(2, "P2", "net0")},
		{guest(1, "P2", "net1")},
		{guest(1, "P2", "net0", "10.66.0.20")},
		{guest(1, "P2", "net0"), guest(2, "P2", "net1")},
	} {
		sums[Sum(guests)] = true
	}
	if len(sums) != 6 {
		t.Errorf("%d different sums of 6", len(sums))
	}
}
