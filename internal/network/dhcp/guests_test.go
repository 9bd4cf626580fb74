package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
)

func guest(last byte, name string, ip ...string) Guest {
	g := Guest{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, last}, Name: name}
	for _, a := range ip {
		g.IP = append(g.IP, netip.MustParseAddr(a))
	}
	return g
}

func TestGuestsFiles(t *testing.T) {
	guests := []Guest{
		guest(1, "alias", "10.66.0.11"), // the host web
		guest(2, "p2", "fd66:1:2:3::20", "10.66.0.20"),
		guest(3, "p3"),
		guest(4, "", "10.66.0.21"),
		guest(5, ""),
	}
	const reservations = "52:54:00:00:00:02,10.66.0.20,p2\n52:54:00:00:00:03,p3\n52:54:00:00:00:04,10.66.0.21\n"
	if got := Reservations(lab(), guests); got != reservations {
		t.Errorf("reservations %q, want %q", got, reservations)
	}
	const names = "10.66.0.11 alias.lab.internal alias\nfd66:1:2:3::20 p2.lab.internal p2\n10.66.0.20 p2.lab.internal p2\n"
	if got := Names(lab(), guests); got != names {
		t.Errorf("names %q, want %q", got, names)
	}
}

// TestStale: only leases of guests that are not there are ended, and only for the one whose address
// it is.
func TestStale(t *testing.T) {
	lease := func(ip string, last byte) Lease {
		return Lease{IP: netip.MustParseAddr(ip), MAC: guest(last, "").MAC.String()}
	}
	leases := []Lease{lease("10.66.0.20", 1), lease("10.66.0.21", 2), lease("10.66.0.22", 3), lease("10.66.0.23", 9)}
	reserved := []Guest{
		guest(5, "", "10.66.0.20"), // whose lease is that of one who has gone
		guest(6, "", "10.66.0.21"), // whose lease is that of one who is there
		guest(3, "", "10.66.0.22"), // its own
	}
	got := Stale(reserved, append(reserved, guest(2, "")), leases)
	if len(got) != 1 || got[0] != leases[0] {
		t.Errorf("stale: %+v", got)
	}
}

func TestRelease(t *testing.T) {
	m, err := Release(netip.MustParseAddr("10.66.0.2"),
		Lease{IP: netip.MustParseAddr("10.66.0.20"), MAC: "52:54:00:00:00:01"})
	options := []byte{99, 130, 83, 99, 53, 1, 7, 54, 4, 10, 66, 0, 2, 255, 0}
	if err != nil || len(m) != 300 || !bytes.Equal(m[:4], []byte{1, 1, 6, 0}) ||
		!bytes.Equal(m[12:16], []byte{10, 66, 0, 20}) || !bytes.Equal(m[28:34], []byte{0x52, 0x54, 0, 0, 0, 1}) ||
		!bytes.Equal(m[236:236+len(options)], options) {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := Release(netip.Addr{}, Lease{MAC: "x"}); err == nil {
		t.Error("a lease of no MAC is released")
	}
}
