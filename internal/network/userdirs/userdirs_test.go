package userdirs

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func from(env map[string]string) func(string) string {
	return func(key string) string { return env[key] }
}

func TestOf(t *testing.T) {
	configs, state, err := Of(from(map[string]string{
		"HOME": "/home/u", "XDG_CONFIG_HOME": "relative", "XDG_STATE_HOME": "/state",
	}))
	if configs != "/home/u/.config/vmnet/networks.d" || state != "/state/vmnet/networks" || err != nil {
		t.Error(configs, state, err)
	}
	if _, _, err := Of(from(nil)); err == nil {
		t.Error("no HOME is no error")
	}
}

func TestJoin(t *testing.T) {
	home := t.TempDir()
	env := from(map[string]string{"HOME": home})
	for _, name := range []string{"lab", "../lab", "Lab"} {
		s := nic.Spec{Network: name}
		if joined, err := Join(&s, env); joined || err != nil || s.Network != name {
			t.Errorf("a network without a file: %v, %v, %+v", joined, err, s)
		}
	}
	file := filepath.Join(home, ".config/vmnet/networks.d/lab.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := nic.Spec{Network: "lab"}
	joined, err := Join(&s, env)
	if !joined || err != nil || s.Network != "" || s.Switch == nil || s.Switch.Name != "lab" {
		t.Errorf("%v, %v, %+v", joined, err, s)
	}
	if err := Settle(t.Context(), &s, env); err == nil {
		t.Error("an empty file was read")
	}
	by := nic.Spec{Network: "lab", Switch: &nic.Switch{By: nic.ByVhostUser}}
	if joined, err := Join(&by, env); !joined || err != nil ||
		*by.Switch != (nic.Switch{Name: "lab", By: nic.ByVhostUser}) {
		t.Errorf("%v, %v, %+v", joined, err, by.Switch)
	}
	if err := os.WriteFile(file, []byte("subnet: 10.66.0.0/24\nisolated: true\nmtu: 9000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		model     string
		mtu, want int
	}{{"", 0, 9000}, {"virtio-net-pci", 0, 9000}, {"virtio-net-pci", 1500, 1500}, {"e1000", 0, 0}} {
		s := s
		s.Model, s.MTU = tc.model, tc.mtu
		if err := Settle(t.Context(), &s, env); err != nil || !s.Port.Isolated || s.MTU != tc.want {
			t.Errorf("%+v: %v, %+v", tc, err, s)
		}
	}
}

// TestCheckIP: an address that somebody else has is refused, with who has it.
func TestCheckIP(t *testing.T) {
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }
	n, err := config.Parse("lab", "lab", []byte(`subnet: 10.66.0.0/24
dhcp: true
hosts:
  - {name: web, mac: "52:54:00:00:00:01", ip: 10.66.0.11}
`))
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	other := nic.Record{
		VM: "P3", NIC: "net0", Type: nic.TypeSocket, Source: "lab", Switch: true, MAC: mac(3), Queues: 1,
		IP: []netip.Addr{addr("10.66.0.20")},
	}
	ports := []control.Port{{Name: "gateway"}, {Name: "P3-net0", Label: other.Label(1)}}
	leases := []dhcp.Lease{
		{IP: addr("10.66.0.100"), MAC: mac(4).String(), Expires: time.Now().Add(time.Hour)},
		{IP: addr("10.66.0.101"), MAC: mac(4).String(), Expires: time.Now().Add(-time.Hour)},
		{IP: addr("10.66.0.102"), MAC: mac(2).String(), Expires: time.Now().Add(time.Hour)},
	}
	for ips, want := range map[string]string{
		"10.66.0.21": "", "10.66.0.101": "", "10.66.0.102": "",
		"10.66.0.11":            "10.66.0.11 is host web's, which has MAC 52:54:00:00:00:01",
		"10.66.0.20":            "10.66.0.20 is P3/net0's, on P3-net0",
		"10.66.0.100":           "10.66.0.100 is leased to MAC 52:54:00:00:00:04 until ",
		"10.66.0.1":             "want an address from 10.66.0.3 to ",
		"10.67.0.1":             "want an address from 10.66.0.3 to ",
		"fd66:1:2:3::20":        "guests make those of IPv6 themselves",
		"10.66.0.21 10.66.0.22": "a guest has one IPv4 address",
	} {
		s := nic.Spec{Target: nic.Target{VM: "P2"}, MAC: mac(2)}
		for _, a := range strings.Fields(ips) {
			s.IP = append(s.IP, addr(a))
		}
		err := checkIP(n, &s, ports, leases)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", ips, err, want)
		}
	}
	same := nic.Spec{Target: nic.Target{VM: "P3"}, NIC: "net0", MAC: mac(3), IP: other.IP}
	host := nic.Spec{Target: nic.Target{VM: "web"}, MAC: mac(1), IP: []netip.Addr{addr("10.66.0.11")}}
	if err := errors.Join(checkIP(n, &same, ports, leases), checkIP(n, &host, ports, leases)); err != nil {
		t.Errorf("their own: %v", err)
	}
	host.IP[0] = addr("10.66.0.12")
	err = checkIP(n, &host, ports, leases)
	if err == nil || !strings.Contains(err.Error(), "host web with 10.66.0.11") {
		t.Errorf("a host with another address: %v", err)
	}
	n.DHCP = false
	if err := checkIP(n, &same, ports, leases); err == nil || !strings.Contains(err.Error(), "no server") {
		t.Errorf("without a server: %v", err)
	}
}
