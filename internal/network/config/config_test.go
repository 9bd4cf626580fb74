package config

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/strictyaml"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// lab is a network with everything.
func lab() *Network {
	return &Network{
		Name: "lab", NAT: true, DHCP: true, MTU: MaxMTU, Isolated: true, Integrate: true, Domain: "lab.internal",
		Subnet: netip.MustParsePrefix("10.66.0.0/24"), IPv6: netip.MustParsePrefix("fd66:1:2:3::/64"),
		Hosts: []Host{{"web", net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, netip.MustParseAddr("10.66.0.11")}},
		Forwards: []Forward{
			{Protocol: "tcp", First: 8080, Last: 8080, Guest: "web", Port: 80},
			{Protocol: "udp", First: 5000, Last: 5010, Listen: netip.MustParseAddr("192.0.2.1"), Guest: "10.66.0.12"},
			{Protocol: "tcp", First: 8081, Last: 8081, Guest: "fd66:1:2:3::11", Port: 80},
		},
	}
}

func TestFormatIsParsed(t *testing.T) {
	for _, n := range []*Network{
		lab(),
		{Name: "a", Domain: "a.internal", Subnet: netip.MustParsePrefix("192.168.7.0/29")},
		{Name: "lan", Domain: "lan.internal", Uplink: &Uplink{Device: "eth1.100"}},
		{Name: "lan", Domain: "lan.internal", Uplink: &Uplink{Device: "eth1", Move: Unconfirmed}},
		onUplink(), onSegment(""), onSegment("192.0.2.2", "192.0.2.3"), onMap(),
	} {
		if err := n.Validate(); err != nil {
			t.Fatal(err)
		}
		got, err := Parse("f", n.Name, n.Format())
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Errorf("%v: got %+v\nwant %+v\nof %s", err, got, n, n.Format())
		}
	}
}

func TestParseErrors(t *testing.T) {
	const subnet = "subnet: 10.66.0.0/24\n"
	const web = "{name: web, mac: \"52:54:00:00:00:01\", ip: 10.66.0.11}"
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "# nothing", "1:1: the file is empty (write subnet: 10.66.0.0/24)"},
		{"no subnet", "nat: true", "1:1: subnet is missing (write subnet: 10.66.0.0/24), in `nat: true`"},
		{
			"unknown key", subnet + "nta: true",
			"2:1: the file has no key \"nta\" (want nat, subnet, ipv6, dhcp, domain, isolated, mtu, integrate, hosts, forwards, uplink, move-address, dhcp-range, router), in `nta: true`",
		},
		{"small MTU", subnet + "mtu: 1279", "2:6: mtu is \"1279\": want 1280 to 65520, in `mtu: 1279`"},
		{"large MTU", subnet + "mtu: 65521", "2:6: mtu is \"65521\": want 1280 to 65520, in `mtu: 65521`"},
		{"no MTU", subnet + "mtu: 0", "2:6: mtu is \"0\": want 1280 to 65520, in `mtu: 0`"},
		{"flag", subnet + "nat: yes", "2:6: nat is neither true nor false, in `nat: yes`"},
		{
			"address", "subnet: 10.66.0.1/24",
			"1:9: subnet 10.66.0.1/24: it is an address, not a network (write 10.66.0.0/24), in `subnet: 10.66.0.1/24`",
		},
		{
			"multicast", "subnet: 239.0.0.0/24",
			"1:9: subnet 239.0.0.0/24: guests cannot have such addresses, in `subnet: 239.0.0.0/24`",
		},
		{
			"small", "subnet: 10.66.0.0/30",
			"1:9: subnet 10.66.0.0/30: want an IPv4 network with a prefix length of 16 to 29, such as 10.66.0.0/24, " +
				"in `subnet: 10.66.0.0/30`",
		},
		{"no prefix", "subnet: x", "1:9: subnet \"x\": want a network with its prefix length, in `subnet: x`"},
		{
			"ipv6", subnet + "ipv6: fd00::/48",
			"2:7: ipv6 fd00::/48: want none, or a network with prefix length 64, such as fd66:1:2:3::/64, in `ipv6: fd00::/48`",
		},
		{
			"domain", subnet + "domain: a_b",
			"2:9: domain \"a_b\": want a lower-case domain name of at most 200 bytes, such as lab.internal, in `domain: a_b`",
		},
		{
			"half a host", subnet + "hosts: [{name: web}]",
			"2:9: a host needs name, mac and ip, in `hosts: [{name: web}]`",
		},
		{
			"router", subnet + "hosts:\n- {name: web, mac: \"52:54:00:00:00:01\", ip: 10.66.0.1}",
			"3:3: host web: ip 10.66.0.1: want an address from 10.66.0.3 to 10.66.0.254 (10.66.0.1 is the host's own, " +
				"10.66.0.2 its server's), in `- {name: web, mac: \"52:54:00:00:00:01\", ip: 10.66.0.1}`",
		},
		{
			"two names", subnet + "hosts:\n- " + web + "\n- {name: web, mac: \"52:54:00:00:00:02\", ip: 10.66.0.12}",
			"4:3: host web: there are two of that name, in `- {name: web, mac: \"52:54:00:00:00:02\", ip: 10.66.0.12}`",
		},
		{
			"two macs", subnet + "hosts:\n- " + web + "\n- {name: db, mac: \"52:54:00:00:00:01\", ip: 10.66.0.12}",
			"4:3: host db: host web has the mac 52:54:00:00:00:01 as well, " +
				"in `- {name: db, mac: \"52:54:00:00:00:01\", ip: 10.66.0.12}`",
		},
		{
			"odd host", subnet + "hosts:\n- {name: \"a\\nb\", mac: \"52:54:00:00:00:01\", ip: 10.66.0.11}",
			"3:3: host name \"a\\nb\": want 1 to 63 lower-case letters, digits or hyphens, " +
				"in `- {name: \"a\\nb\", mac: \"52:54:00:00:00:01\", ip: 10.66.0.11}`",
		},
		{
			"unknown guest", subnet + "forwards:\n- {from: \"tcp:8080\", to: \"web:80\"}",
			"3:3: forward tcp:8080: network lab has no host web, and no such guest is on it " +
				"(attach it first, name it with --host web=MAC, or write its address), " +
				"in `- {from: \"tcp:8080\", to: \"web:80\"}`",
		},
		{
			"outside", subnet + "forwards:\n- {from: \"tcp:8080\", to: \"10.67.0.1:80\"}",
			"3:3: forward tcp:8080: 10.67.0.1 is not in network lab (10.66.0.0/24), " +
				"in `- {from: \"tcp:8080\", to: \"10.67.0.1:80\"}`",
		},
		{
			"collision",
			subnet + "forwards:\n- {from: \"tcp:80-90\", to: 10.66.0.11}\n- {from: \"tcp:90\", to: 10.66.0.12}",
			"4:3: forward tcp:90: tcp:80-90 to 10.66.0.11 has the same ports, in `- {from: \"tcp:90\", to: 10.66.0.12}`",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := Parse("f", "lab", []byte(tc.text))
			var at *strictyaml.Error
			if !errors.As(err, &at) || err.Error() != "f:"+tc.want {
				t.Errorf("%+v\ngot  %v\nwant f:%s", n, err, tc.want)
			}
		})
	}
}

func TestParseForward(t *testing.T) {
	for _, tc := range []struct{ from, to, listen, want string }{
		{"tcp:8080", "web:80", "", "tcp:8080 web:80"},
		{"tcp:80", "web:80", "", "tcp:80 web"},
		{"udp:5000-5010", "10.66.0.11", "192.0.2.1", "udp:5000-5010 10.66.0.11"},
		{"tcp:80", "[fd66::11]:8080", "", "tcp:80 [fd66::11]:8080"},
		{"tcp:80", "[fd66::11]", "", "tcp:80 [fd66::11]"},
		{"tcp:5-4", "web", "", `forward "tcp:5-4": want`},
		{"tcp:0", "web", "", `forward "tcp:0": want`},
		{"tcp:+5", "web", "", `forward "tcp:+5": want`},
		{"sctp:5", "web", "", `forward "sctp:5": want`},
		{"tcp:5-6", "web:7", "", "a range keeps its port numbers"},
		{"tcp:5", "web:", "", `forward to "web:": want`},
		{"tcp:5", "", "", `forward to "": want`},
		{"tcp:5", "WEB; drop", "", `want a guest`},
		{"tcp:5", "[10.0.0.1]:5", "", `want a guest`},
		{"tcp:5", "[fe80::1%eth0]:5", "", `want a guest`},
		{"tcp:5", "web", "0.0.0.0", "want an IP address of the host"},
	} {
		f, err := ParseForward(tc.from, tc.to, tc.listen)
		got := f.From() + " " + f.To()
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != tc.want || err != nil && !strings.Contains(got, tc.want) {
			t.Errorf("%s %s %s: %s, want %s", tc.from, tc.to, tc.listen, got, tc.want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "a/b", "../x", "a b", "a\nb", "-a", "a-", "A", "abcdefghijklmnop", "lab;x", "läb", "a.b", "a%b",
	} {
		if CheckName(name) == nil {
			t.Errorf("%q is accepted", name)
		}
		if _, err := Dir(t.TempDir()).Read(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "0", "lab-2", "abcdefghijklmno"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
}

func TestChooseIPs(t *testing.T) {
	n := &Network{Subnet: netip.MustParsePrefix("10.66.0.0/29"), Hosts: []Host{
		{Name: "a"}, {Name: "b", IP: netip.MustParseAddr("10.66.0.4")}, {Name: "c"},
	}}
	if err := n.ChooseIPs(); err != nil || n.Hosts[0].IP.String() != "10.66.0.3" ||
		n.Hosts[2].IP.String() != "10.66.0.5" {
		t.Errorf("%v, %v", n.Hosts, err)
	}
	n.Hosts = append(n.Hosts, Host{Name: "d"}, Host{Name: "e"})
	if err := n.ChooseIPs(); err == nil || !strings.Contains(err.Error(), "10.66.0.0/29 has no address left") {
		t.Error(err)
	}
}

func TestFree(t *testing.T) {
	taken := []Taken{
		{netip.MustParsePrefix("0.0.0.0/0"), "eth0"},
		{netip.MustParsePrefix("0.0.0.0/1"), "tun0"},
		{netip.MustParsePrefix("10.66.0.0/23"), "wg0"},
		{netip.MustParsePrefix("10.66.2.9/32"), "eth1"},
		{netip.MustParsePrefix("2000::/3"), "eth0"},
	}
	if p, err := FreeSubnet(taken); err != nil || p.String() != "10.66.3.0/24" {
		t.Errorf("%v, %v", p, err)
	}
	err := lab().CheckFree(taken)
	if !errors.Is(err, ErrOverlap) || !strings.Contains(err.Error(), "10.66.0.0/24 overlaps 10.66.0.0/23 of wg0") {
		t.Error(err)
	}
	p, err := FreeIPv6(taken)
	if err != nil || checkIPv6(p) != nil || p.Addr().As16()[0] != 0xfd {
		t.Errorf("%v, %v", p, err)
	}
	for _, pool := range pools {
		taken = append(taken, Taken{pool, "pool"})
	}
	if p, err := FreeSubnet(taken); err == nil {
		t.Error(p)
	}
	if p, err := FreeIPv6([]Taken{{netip.MustParsePrefix("fd00::/8"), "all"}}); err == nil {
		t.Error(p)
	}
}

func TestDir(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "networks.d"))
	if _, err := d.Read("lab"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if names, err := d.Names(); err != nil || names != nil {
		t.Error(names, err)
	}
	n := lab()
	if err := d.Write(n); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(string(d), ".lab.yaml.123")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.NAT = false
	if err := d.Write(n); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed write left: %v", err)
	}
	if got, err := d.Read("lab"); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(d.Path("bad"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	all, broken, err := d.All()
	if err != nil || len(all) != 1 || len(broken) != 1 {
		t.Errorf("%v, %v, %v", all, broken, err)
	}
	if err := os.Chmod(d.Path("lab"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read("lab"); err == nil || !strings.Contains(err.Error(), "chmod 0644") {
		t.Error(err)
	}
	for range 2 {
		if err := d.Remove("lab"); err != nil {
			t.Error(err)
		}
	}
}

func TestLock(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "networks.d"))
	unlock, err := d.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	unlock, err = d.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

// TestLiveFullDisk: a file that cannot be written whole leaves the old one as it was.
func TestLiveFullDisk(t *testing.T) {
	nstest.RequireRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	d, n := Dir(dir), lab()
	if err := d.Write(n); err != nil {
		t.Fatal(err)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	if err := fill.Close(); err != nil {
		t.Fatal(err)
	}
	changed := lab()
	changed.NAT = false
	if err := d.Write(changed); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if got, err := d.Read("lab"); err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("%+v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".lab*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// FuzzParse: what is accepted is valid, and is read as it is written.
func FuzzParse(f *testing.F) {
	f.Add(string(lab().Format()))
	f.Add("subnet: 10.0.0.0/16\nhosts: [{name: a, mac: 52-54-00-00-00-01, ip: 10.0.0.9}]")
	f.Add("subnet: [&a *a]")
	f.Add("{{{{{{{{{{{{")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse("f", "lab", []byte(text))
		if err != nil {
			return
		}
		if err := n.Validate(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		again, err := Parse("f", "lab", n.Format())
		if err != nil || !reflect.DeepEqual(n, again) {
			t.Errorf("%q: %+v is read again as %+v, %v", text, n, again, err)
		}
	})
}

// TestExamples: the example file is one, and so is that of the man page.
func TestExamples(t *testing.T) {
	example, err := os.ReadFile("../../../docs/examples/network.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse("network.yaml", "lab", example); err != nil {
		t.Error(err)
	}
	page, err := os.ReadFile("../../../docs/man/vmnet-network.8.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "\n# FILE\n")
	text, _, _ = strings.Cut(text, "\n# OPTIONS\n")
	var examples []string
	code := false
	for line := range strings.Lines(text) {
		rest, is := strings.CutPrefix(line, "    ")
		if is && !code {
			examples = append(examples, "")
		}
		if code = is; is {
			examples[len(examples)-1] += rest
		}
	}
	if len(examples) != 3 {
		t.Fatalf("%d examples", len(examples))
	}
	if n, err := Parse("vmnet-network.8.md", "lab", []byte(examples[0])); err != nil || len(n.Forwards) != 3 {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := Parse("vmnet-network.8.md", "lan", []byte(examples[1])); err != nil || n.Uplink == nil {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := Parse("vmnet-network.8.md", "far", []byte(examples[2])); err != nil || n.Uplink.VXLAN == nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestBoundForward: a forward may be bound to the NIC of a guest that is no host. It is a host of
// the network then, and contradicts others.
func TestBoundForward(t *testing.T) {
	bound := Forward{
		Protocol: "tcp", First: 22, Last: 22, Guest: "p2",
		Bound: Binding{MAC: "52:54:00:00:00:02", IP: netip.MustParseAddr("10.66.0.20")},
	}
	n := lab()
	n.Forwards = append(n.Forwards, bound)
	got, err := Parse("f", n.Name, n.Format())
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("%v: got %+v\nwant %+v", err, got, n)
	}
	if fixed := n.Fixed(); len(fixed) != 2 || fixed[1].Name != "p2" || fixed[1].IP != bound.Bound.IP {
		t.Errorf("fixed: %+v", fixed)
	}
	if a, err := n.Target(bound); err != nil || a != bound.Bound.IP {
		t.Errorf("target %v, %v", a, err)
	}
	for want, change := range map[string]func(*Forward){
		"want an IPv4 address":           func(f *Forward) { f.Bound.IP = netip.MustParseAddr("fd66:1:2:3::20") },
		"want an address from 10.66.0.3": func(f *Forward) { f.Bound.IP = netip.MustParseAddr("10.66.0.1") },
		`mac "x"`:                        func(f *Forward) { f.Bound.MAC = "x" },
		"host web has mac 52:54:00:00:00:01 and ip 10.66.0.11": func(f *Forward) { f.Bound.IP = n.Hosts[0].IP },
		"host web has mac 52:54:00:00:00:01":                   func(f *Forward) { f.Bound.MAC = n.Hosts[0].MAC.String() },
		"host p3 has mac 52:54:00:00:00:02":                    func(f *Forward) { f.First, f.Last, f.Guest = 23, 23, "p3" },
		"mac and ip go with the name of a guest":               func(f *Forward) { f.Guest = "10.66.0.20" },
	} {
		n := lab()
		other := bound
		n.Forwards = []Forward{bound}
		change(&other)
		n.Forwards = append(n.Forwards, other)
		if other.First == bound.First {
			n.Forwards = n.Forwards[1:]
		}
		if err := n.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", other, err, want)
		}
	}
}

func TestLabel(t *testing.T) {
	for guest, want := range map[string]string{
		"P1": "p1", "my vm": "my-vm", "-a_b.": "a-b", "名前": "", "": "",
		strings.Repeat("x", 70): strings.Repeat("x", 63), strings.Repeat("x", 62) + "--y": strings.Repeat("x", 62),
	} {
		if got := Label(guest); got != want || got != "" && !isLabel(got) {
			t.Errorf("%q: %q, want %q", guest, got, want)
		}
	}
}

func TestServerMark(t *testing.T) {
	for _, m := range []ServerMark{{"lab", "12ab", ""}, {"lab", "12ab", "34cd"}} {
		if got, ok := ParseServerMark(m.String()); !ok || got != m {
			t.Errorf("%q is read as %+v", m, got)
		}
	}
	for _, text := range []string{
		"", "x", "vmnet network=lab", "vmnet server=12ab", "vmnet network=lab ip_forward=0",
		"vmnet network=%zz server=1",
		"vmnet vm=P2 nic=net0 type=tap source=lab network=lab mac=52:54:00:00:00:01",
	} {
		if m, ok := ParseServerMark(text); ok {
			t.Errorf("%q is read as %+v", text, m)
		}
	}
}
