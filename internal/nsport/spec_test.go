package nsport

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge/brport"
	"vmnet/internal/network/config"
	"vmnet/tapmgr/nic"
)

func TestValidate(t *testing.T) {
	ip := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	for want, change := range map[string]func(*Spec){
		"":                                   func(*Spec) {},
		"no network namespace":               func(s *Spec) { s.Netns = "" },
		`interface name "a/b"`:               func(s *Spec) { s.Interface = "a/b" },
		`interface name "sixteen-letters1"`:  func(s *Spec) { s.Interface = "sixteen-letters1" },
		`id "a b"`:                           func(s *Spec) { s.ID = "a b" },
		`id "-a"`:                            func(s *Spec) { s.ID = "-a" },
		"id \"" + strings.Repeat("a", 33):    func(s *Spec) { s.ID = strings.Repeat("a", 33) },
		"want one bridge":                    func(s *Spec) { s.Bridge = "" },
		"want one bridge, network or parent": func(s *Spec) { s.Macvlan = "eth0" },
		"a mode needs a macvlan":             func(s *Spec) { s.Mode = "bridge" },
		`macvlan mode "passthru": want bridge, vepa, private`: func(s *Spec) {
			s.Bridge, s.Macvlan, s.Mode = "", "eth0", "passthru"
		},
		`ipvlan mode "bridge": want l2, l3, l3s`: func(s *Spec) { s.Bridge, s.IPVlan, s.Mode = "", "eth0", "bridge" },
		"settings of a port":                     func(s *Spec) { s.Bridge, s.Macvlan, s.Port.VLAN = "", "eth0", 5 },
		"VLAN 4095":                              func(s *Spec) { s.Port.VLAN = 4095 },
		"both VLAN and trunk":                    func(s *Spec) { s.Port = brport.Settings{VLAN: 1, Trunk: []brport.VLANRange{{First: 2, Last: 3}}} },
		"address 224.0.0.1/24":                   func(s *Spec) { s.Addresses = ip("224.0.0.1/24") },
		"address 0.0.0.0/0":                      func(s *Spec) { s.Addresses = ip("0.0.0.0/0") },
		"address ::ffff:1.2.3.4/120":             func(s *Spec) { s.Addresses = ip("::ffff:1.2.3.4/120") },
		"address invalid Prefix":                 func(s *Spec) { s.Addresses = make([]netip.Prefix, 1) },
		"address 10.0.0.1 is given twice":        func(s *Spec) { s.Addresses = ip("10.0.0.1/24", "10.0.0.1/16") },
		"gateway fd00::1: it needs an address": func(s *Spec) {
			s.Addresses, s.Gateways = ip("10.0.0.7/24"), []netip.Addr{netip.MustParseAddr("fd00::1")}
		},
		"gateway 10.0.0.2: one of that IP version": func(s *Spec) {
			s.Addresses = ip("10.0.0.7/24")
			s.Gateways = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
		},
		"MTU 67":                  func(s *Spec) { s.MTU = 67 },
		"MTU 65536":               func(s *Spec) { s.MTU = 65536 },
		"MAC 01:00:00:00:00:01":   func(s *Spec) { s.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"MAC 00:00:00:00:00:00":   func(s *Spec) { s.MAC = make(net.HardwareAddr, 6) },
		"an ipvlan has the MAC":   func(s *Spec) { s.Bridge, s.IPVlan, s.MAC = "", "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 1} },
		"MAC 02:00:00:00:00:01:0": func(s *Spec) { s.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1, 0} },
	} {
		s := Spec{Netns: "blue", Bridge: "br0"}
		change(&s)
		err := s.Validate()
		if want == "" && err != nil ||
			want != "" && (!errors.Is(err, nic.ErrInvalid) && !errors.Is(err, brport.ErrInvalid) ||
				!strings.Contains(err.Error(), want)) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestID(t *testing.T) {
	for name, want := range map[string]string{
		"blue": "blue-eth0", "4711": "pid4711-eth0", "/proc/4711/ns/net": "pid4711-eth0", "/proc/self/ns/net": "net-eth0",
		"/run/docker/netns/1a2b": "1a2b-eth0", "/var/run/netns/blue": "blue-eth0", "a b/c d": "c_d-eth0", "-x": "x-eth0",
		"/": "eth0", "...": "eth0", "/run/netns/cni-01234567-89ab-cdef-0123-456789abcdef": "89ab-cdef-0123-456789abcdef-eth0",
		"ünï": "n_-eth0",
	} {
		if got := (Spec{Netns: name}).id(); got != want || !validID(got) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestInSubnets(t *testing.T) {
	n := &config.Network{
		Name: "lab", Subnet: netip.MustParsePrefix("10.66.0.0/24"), IPv6: netip.MustParsePrefix("fd66::/64"),
		NAT: true, DHCP: true,
	}
	for text, want := range map[string]string{
		"10.66.0.20/32": "10.66.0.20/24", "10.66.0.20/24": "10.66.0.20/24", "fd66::20/128": "fd66::20/64",
		"10.66.0.20/16": "network lab has the prefix length 24", "10.67.0.20/32": "is not in network lab",
		"10.66.0.1/32": "is one of network lab itself", "10.66.0.2/24": "is one of network lab itself",
		"fd66::2/64": "is one of network lab itself",
	} {
		got, err := inSubnets([]netip.Prefix{netip.MustParsePrefix(text)}, n)
		if err == nil && joined(got) != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
}

// fullRecord has every field.
var fullRecord = Record{
	Netns: "/run/netns/a b", ID: "web", Type: Veth, Source: "br0", At: 7, Network: "lab", Interface: "eth0",
	Mode: "x",
	MAC: net.HardwareAddr{
		2,
		0,
		0,
		0,
		0,
		1,
	}, MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")},
	Gateways: []netip.Addr{
		netip.MustParseAddr("10.0.0.1"),
		netip.MustParseAddr("fd00::1"),
	}, Port: "vlan:5;isolated",
	Unfinished: true,
}

func TestRecord(t *testing.T) {
	equal := cmp.Comparer(func(a, b Record) bool { return a.String() == b.String() })
	for _, r := range []Record{fullRecord, {Netns: "blue", ID: "x", Type: IPVlan, Source: "eth0", Interface: "eth0"}} {
		got, ok := ParseRecord(r.String())
		if !ok || !cmp.Equal(got, r, equal) {
			t.Errorf("%s becomes %s", r, got)
		}
	}
	whole := fullRecord.String()
	for what, text := range map[string]string{
		"a NIC's":          "vmnet vm=P2 nic=net0 type=tap source=br0",
		"a network's":      "vmnet network=lab",
		"empty":            "",
		"cut":              whole[:30],
		"twice the id":     whole + " id=x",
		"a bad address":    strings.Replace(whole, "10.0.0.7/24", "10.0.0.7", 1),
		"a bad type":       strings.Replace(whole, "type=veth", "type=tap", 1),
		"a bad interface":  strings.Replace(whole, "ifname=eth0", "ifname=a/b", 1),
		"a bad id":         strings.Replace(whole, "id=web", "id=a%20b", 1),
		"a bad escape":     whole + " x=%2",
		"two spaces":       strings.Replace(whole, " id", "  id", 1) + " =",
		"a bad port":       strings.Replace(whole, "isolated", "loud", 1),
		"other separators": strings.ReplaceAll(whole, " ", "\t"),
	} {
		if r, ok := ParseRecord(text); ok {
			t.Errorf("%s: %q was taken for %s", what, text, r)
		}
	}
	if r, ok := ParseRecord(whole + " colour=blue"); !ok || r.ID != "web" {
		t.Errorf("an unknown key: %v", ok)
	}
	other := fullRecord
	other.Netns, other.Unfinished = "blue", false
	if d := fullRecord.Differences(other); len(d) > 0 {
		t.Errorf("%q", d)
	}
	other.MTU, other.Port = 0, ""
	const want = "MTU 1400, want none; port settings vlan:5;isolated, want none"
	if d := strings.Join(fullRecord.Differences(other), "; "); d != want {
		t.Errorf("%q", d)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(fullRecord.String())
	f.Add("vmnet netns=a id=b type=macvlan source=c ifname=d")
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := ParseRecord(text)
		if !ok {
			return
		}
		again, ok := ParseRecord(r.String())
		if !ok || again.String() != r.String() || len(r.Differences(again)) > 0 {
			t.Errorf("%q becomes %q", r, again)
		}
	})
}
