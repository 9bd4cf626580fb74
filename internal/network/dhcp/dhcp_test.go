package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func lab() *config.Network {
	return &config.Network{
		Name: "lab", NAT: true, Domain: "lab.internal",
		Subnet: netip.MustParsePrefix("10.66.0.0/24"), IPv6: netip.MustParsePrefix("fd66:1:2:3::/64"),
		Hosts: []config.Host{{
			Name: "web", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, IP: netip.MustParseAddr("10.66.0.11"),
		}},
	}
}

func TestArgs(t *testing.T) {
	n := lab()
	files := FilesOf("/state", "lab")
	args := Args(n, files, "/resolv")
	for _, want := range []string{
		"--dhcp-range=10.66.0.64,10.66.0.254,255.255.255.0,1h", "--dhcp-option=option:router,10.66.0.1",
		"--dhcp-host=52:54:00:00:00:01,10.66.0.11,web", "--host-record=web.lab.internal,web,10.66.0.11",
		"--domain=lab.internal,10.66.0.0/24,local", "--resolv-file=/resolv", "--dhcp-leasefile=/state/lab.leases",
		"--interface=eth0", "--keep-in-foreground",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	n.NAT = false
	args = Args(n, files, "/resolv")
	if !slices.Contains(args, "--no-resolv") || !slices.Contains(args, "--dhcp-option=option:router") {
		t.Errorf("without NAT: %q", args)
	}
}

func TestUpstream(t *testing.T) {
	up := parseUpstream(
		"# nameserver 1.1.1.1\nnameserver 127.0.0.53\nsearch x\nnameserver 192.0.2.1\nnameserver ::1\n" +
			"nameserver\nnameserver fe80::1%eth0\nnameserver ::ffff:127.0.0.53\nnameserver ::1%lo\n",
	)
	want := []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("::1")}
	if up.Others != 2 || !slices.Equal(up.Loopback, want) {
		t.Errorf("%+v", up)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, bytes.Repeat([]byte("nameserver 127.0.0.1\n"), 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadUpstream(path); err == nil || !strings.Contains(err.Error(), "more than 65536 bytes") {
		t.Errorf("too long: %v", err)
	}
}

func TestParseLeases(t *testing.T) {
	leases, err := ParseLeases([]byte("1700000000 52:54:00:00:00:01 10.66.0.11 web 01:52:54:00:00:00:01\n" +
		"0 52:54:00:00:00:02 10.66.0.64 * *\nduid 00:01\n1700000000 1 fd66::1 x *\n"))
	want := []Lease{
		{netip.MustParseAddr("10.66.0.11"), "52:54:00:00:00:01", "web", time.Unix(1700000000, 0).UTC(), ""},
		{IP: netip.MustParseAddr("10.66.0.64"), MAC: "52:54:00:00:00:02"},
	}
	if err != nil || !slices.Equal(leases, want) {
		t.Errorf("%+v, %v", leases, err)
	}
	for text, want := range map[string]string{
		"1 2 3\n":                              "line 1: 3 fields",
		"\nx 52:54:00:00:00:01 10.0.0.1 * *\n": `line 2: expiry "x"`,
		"-1 52:54:00:00:00:01 10.0.0.1 * *\n":  `line 1: expiry "-1"`,
		"1 x 10.0.0.1 * *\n":                   `line 1: MAC "x"`,
		"1 52:54:00:00:00:01 x * *\n":          `line 1: address "x"`,
		"1 52:54:00:00:00:01 10.0.0.1 " + strings.Repeat("a", 2000) + " *\n": "line 1: a field of 2000 bytes",
		strings.Repeat("\n", MaxLeaseBytes+1):                                "more than 4194304 bytes",
	} {
		if _, err := ParseLeases([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// FuzzParseLeases: no content of a lease file, of which guests write parts, is taken for what it is
// not.
func FuzzParseLeases(f *testing.F) {
	f.Add([]byte("1700000000 52:54:00:00:00:01 10.66.0.11 web *\n"))
	f.Add([]byte("duid x"))
	f.Add([]byte("0 ff 1::%a \xff *"))
	f.Fuzz(func(t *testing.T, data []byte) {
		leases, err := ParseLeases(data)
		if err != nil && leases != nil {
			t.Errorf("%v and %v", leases, err)
		}
		for _, l := range leases {
			if !l.IP.IsValid() || l.MAC == "" || strings.ContainsAny(l.Name, " \n\t") {
				t.Errorf("%q: %+v", data, l)
			}
		}
	})
}
