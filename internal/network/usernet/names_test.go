package usernet

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

func TestHostName(t *testing.T) {
	for vm, want := range map[string]string{
		"P2": "p2", "web server": "web-server", "ä": "", "-a_b-": "a-b", strings.Repeat("x", 80): strings.Repeat("x", 63),
	} {
		if got := hostName(vm); got != want {
			t.Errorf("%q: %q", vm, got)
		}
	}
}

func TestHostsOf(t *testing.T) {
	n := lab(t)
	mac, err := net.ParseMAC("52:54:00:00:66:01")
	if err != nil {
		t.Fatal(err)
	}
	n.Hosts = []config.Host{{Name: "web", MAC: mac, IP: netip.MustParseAddr("10.66.0.11")}}
	label := func(vm, text string) control.Port {
		mac, err := net.ParseMAC(text)
		if err != nil {
			t.Fatal(err)
		}
		r := nic.Record{VM: vm, NIC: "net0", Type: nic.TypeSocket, Source: "lab", Switch: true, MAC: mac, Queues: 1}
		return control.Port{Label: r.Label(1)}
	}
	lease := func(ip, mac, name string) dhcp.Lease {
		return dhcp.Lease{IP: netip.MustParseAddr(ip), MAC: mac, Name: name}
	}
	asked := map[string]string{}
	ports := []control.Port{
		{Name: Gateway},
		label("P2", "52:54:00:00:00:02"), label("p2", "52:54:00:00:00:03"),
		label("web", "52:54:00:00:00:04"), label("P5", "52:54:00:00:00:05"), label("P6", "52:54:00:00:00:06"),
		label("P7", "52:54:00:00:00:07"),
	}
	for _, given := range []string{"debian", "p2"} { // dnsmasq takes the name of the file
		got := hostsOf(n, ports, []dhcp.Lease{
			lease("10.66.0.102", "52:54:00:00:00:02", given), lease("10.66.0.103", "52:54:00:00:00:03", ""),
			lease("10.66.0.104", "52:54:00:00:00:04", ""), lease("10.66.0.106", "52:54:00:00:00:06", "p5"),
			lease("10.66.0.107", "52:54:00:00:00:07", "web"),
		}, asked)
		if !maps.Equal(got, map[string]string{
			"p2": "10.66.0.102 p2.lab.internal p2 debian.lab.internal debian\n",
			"p6": "10.66.0.106 p6.lab.internal p6\n", "p7": "10.66.0.107 p7.lab.internal p7\n",
		}) {
			t.Errorf("%q", got)
		}
	}
}

// TestReservationsOf: the first NIC that asks for an address has it, after the file's hosts.
func TestReservationsOf(t *testing.T) {
	n := lab(t)
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }
	n.Hosts = []config.Host{{Name: "web", MAC: mac(1), IP: netip.MustParseAddr("10.66.0.11")}}
	var ports []control.Port
	for i, ips := range []string{
		"10.66.0.11", "10.66.0.20 fd66:1:2:3::20", "10.66.0.20", "", "10.66.0.1", "10.66.0.21",
	} {
		r := nic.Record{
			VM: "P", NIC: "net0", Type: nic.TypeSocket, Source: "lab", Switch: true, MAC: mac(byte(i + 1)), Queues: 1,
		}
		for _, a := range strings.Fields(ips) {
			r.IP = append(r.IP, netip.MustParseAddr(a))
		}
		ports = append(ports, control.Port{Label: r.Label(1)})
	}
	got := strings.Join(reservationsOf(n, append(ports, control.Port{Name: Gateway})), " ")
	if got != "52:54:00:00:00:02,10.66.0.20 52:54:00:00:00:06,10.66.0.21" {
		t.Error(got)
	}
}

func TestUpdate(t *testing.T) {
	dir, has := t.TempDir(), map[string]string{}
	for _, want := range []map[string]string{{"a": "1", "b": "2"}, {"a": "3"}, {}} {
		if err := update(dir, has, want); err != nil {
			t.Fatal(err)
		}
		there := map[string]string{}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			there[e.Name()] = string(text)
		}
		if !maps.Equal(there, want) || !maps.Equal(has, want) {
			t.Errorf("%v, %v, want %v", there, has, want)
		}
	}
}

// TestLiveUpdateFull: on a full disk, names that are written stay, and the others follow once there
// is room.
func TestLiveUpdateFull(t *testing.T) {
	nstest.RequireRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	names, has := filepath.Join(dir, "names"), map[string]string{}
	if err := os.Mkdir(names, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := update(names, has, map[string]string{"a": "1"}); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for _, want := range []map[string]string{{"a": "1", "b": "2"}, {"a": "3"}} {
		if err := update(names, has, want); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
		if text, err := os.ReadFile(filepath.Join(names, "a")); string(text) != "1" || has["a"] != "1" {
			t.Errorf("a is %q, %v, and counts as %q", text, err, has["a"])
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := update(names, has, map[string]string{"a": "3", "b": "2"}); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"a": "3", "b": "2"} {
		if text, err := os.ReadFile(filepath.Join(names, name)); string(text) != want || has[name] != want {
			t.Errorf("%s is %q, %v, and counts as %q", name, text, err, has[name])
		}
	}
}
