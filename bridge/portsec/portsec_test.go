package portsec_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
)

func TestParseChecks(t *testing.T) {
	for list, want := range map[string]portsec.Checks{
		"none": 0, "all": portsec.All, "mac": portsec.MAC, "vlan,mac": portsec.MAC | portsec.VLAN,
		"mac,ip,arp,nd,dhcp,ra,vlan": portsec.All,
	} {
		got, err := portsec.ParseChecks(list)
		if err != nil || got != want {
			t.Errorf("%q: %s, %v", list, got, err)
		}
		if again, err := portsec.ParseChecks(got.String()); err != nil || again != got {
			t.Errorf("%q: %q is %s, %v", list, got, again, err)
		}
	}
	for _, list := range []string{"", "MAC", "mac,", ",mac", "mac,mac", "mac,all", "mac, ip", "stp"} {
		if got, err := portsec.ParseChecks(list); err == nil {
			t.Errorf("%q is %s", list, got)
		}
	}
}

func TestParseEtherType(t *testing.T) {
	for text, want := range map[string]portsec.EtherType{"0x88f7": 0x88f7, "0x0600": 0x600, "35063": 0x88f7} {
		if got, err := portsec.ParseEtherType(text); err != nil || got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "0x5ff", "0x10000", "0x0800", "0x86dd", "0x0806", "0x8035", "0x8100",
		"0x88a8", "lldp", "-1",
	} {
		if got, err := portsec.ParseEtherType(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

func TestValidate(t *testing.T) {
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, text := range list {
			p, err := portsec.ParseIP(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		return all
	}
	for _, c := range []struct {
		name   string
		change func(*portsec.Config)
		want   string // part of the error; empty for none
	}{
		{"as it is", func(*portsec.Config) {}, ""},
		{"nothing", func(c *portsec.Config) { *c = portsec.Config{} }, ""},
		{"unknown check", func(c *portsec.Config) { c.Checks = 0x80 }, "unknown checks 0x80"},
		{"no MAC", func(c *portsec.Config) { c.MAC = nil }, "mac,arp,nd need"},
		{"no MAC, not needed", func(c *portsec.Config) { c.MAC, c.Checks = nil, portsec.DHCP }, ""},
		{"group MAC", func(c *portsec.Config) { c.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} }, "not multicast"},
		{"zero MAC", func(c *portsec.Config) { c.MAC = make(net.HardwareAddr, 6) }, "not all zeros"},
		{"long MAC", func(c *portsec.Config) { c.MAC = make(net.HardwareAddr, 8) }, "want 6 bytes"},
		{"no address", func(c *portsec.Config) { c.IPs = nil }, "--ip ADDRESS"},
		{
			"no address, not needed",
			func(c *portsec.Config) { c.IPs, c.Checks = nil, portsec.All&^portsec.IP }, "",
		},
		{
			"network",
			func(c *portsec.Config) {
				c.IPs = prefixes("10.0.0.0/8", "2001:db8::/64", "0.0.0.0/0",
					"::/0")
			}, "",
		},
		{"host bits", func(c *portsec.Config) { c.IPs = prefixes("10.0.0.1/8") }, "without host bits"},
		{"multicast", func(c *portsec.Config) { c.IPs = prefixes("ff02::1") }, "no host's own"},
		{"unspecified", func(c *portsec.Config) { c.IPs = prefixes("0.0.0.0") }, "no host's own"},
		{"loopback", func(c *portsec.Config) { c.IPs = prefixes("127.0.0.1") }, "no host's own"},
		{"broadcast", func(c *portsec.Config) { c.IPs = prefixes("255.255.255.255") }, "no host's own"},
		{"4 in 6", func(c *portsec.Config) { c.IPs = prefixes("::ffff:10.0.0.1") }, "plain IPv4 or IPv6"},
		{"invalid", func(c *portsec.Config) { c.IPs = []netip.Prefix{{}} }, "want an address"},
		{"twice", func(c *portsec.Config) { c.IPs = prefixes("10.0.0.1", "10.0.0.1") }, "twice"},
		{"16", func(c *portsec.Config) { c.IPs = portsectest.Networks().IPs }, ""},
		{
			"17",
			func(c *portsec.Config) {
				c.IPs = append(portsectest.Networks().IPs,
					prefixes("10.8.0.1")...)
			}, "at most 16",
		},
		{
			"17 of IPv6",
			func(c *portsec.Config) {
				c.IPs = append(portsectest.Networks().IPs,
					prefixes("2001::")...)
			}, "at most 16",
		},
		{
			"type of a check", func(c *portsec.Config) { c.EtherTypes = []portsec.EtherType{0x86dd} },
			"checks of its own",
		},
		{"type twice", func(c *portsec.Config) { c.EtherTypes = []portsec.EtherType{0x88f7, 0x88f7} }, "twice"},
		{"types without a check", func(c *portsec.Config) {
			c.Checks, c.EtherTypes = portsec.MAC, []portsec.EtherType{0x88f7}
		}, "need one of ip,arp,nd,dhcp,ra"},
		{"9 types", func(c *portsec.Config) { c.EtherTypes = make([]portsec.EtherType, 9) }, "at most 8"},
	} {
		cfg := portsectest.Config()
		c.change(&cfg)
		err := cfg.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !errors.Is(err,
			portsec.ErrInvalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseIP(t *testing.T) {
	for _, text := range []string{"10.0.0.1", "10.0.0.0/8", "2001:db8::1", "2001:db8::/64"} {
		if p, err := portsec.ParseIP(text); err != nil || portsec.FormatIP(p) != text {
			t.Errorf("%q: %s, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "10.0.0", "fe80::1%eth0", "10.0.0.0/33", "fe80::%1/64", "web"} {
		if p, err := portsec.ParseIP(text); err == nil {
			t.Errorf("%q is %s", text, p)
		}
	}
}

func TestConfigText(t *testing.T) {
	cfg := portsectest.Config()
	cfg.EtherTypes = []portsec.EtherType{0x88f7}
	const want = "all mac:52:54:00:00:aa:01 ip:10.7.0.1,2001:db8::1 type:0x88f7"
	if got := cfg.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	text, err := json.Marshal(cfg)
	var again portsec.Config
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if d := cmp.Diff(cfg, again, cmpopts.EquateComparable(netip.Prefix{})); err != nil || d != "" {
		t.Errorf("%s: %v%s", text, err, d)
	}
}

func TestEqual(t *testing.T) {
	a, b := portsectest.Config(), portsectest.Config()
	slices.Reverse(b.IPs)
	if !a.Equal(b) {
		t.Error("the order of addresses matters")
	}
	if b.IPs = b.Own(); !a.Equal(b) {
		t.Error("the link-local address matters")
	}
	if a.Equal(portsectest.Without(portsec.RA)) || a.Equal(portsectest.Networks()) {
		t.Error("other configurations are equal")
	}
}

// TestNoAllocations also runs through what no valid frame has.
func TestNoAllocations(t *testing.T) {
	cases := portsectest.Table()
	for _, c := range cases {
		checker := portsec.NewChecker(c.Config)
		if n := testing.AllocsPerRun(10, func() { checker.Verdict(c.Frame) }); n != 0 {
			t.Errorf("%s: %v allocations", c.Name, n)
		}
	}
}

func TestReasonsHaveWords(t *testing.T) {
	words := map[string]bool{}
	for r := range portsec.Reasons {
		w := portsec.Reason(r).String()
		if w == "unknown" || words[w] {
			t.Errorf("reason %d: %q", r, w)
		}
		words[w] = true
	}
}

// FuzzVerdict: no frame makes a checker panic, the frame stays as it is, and a frame that passes
// also passes with fewer checks.
func FuzzVerdict(f *testing.F) {
	for _, c := range portsectest.Table() {
		f.Add(c.Frame, uint8(c.Config.Checks))
	}
	f.Fuzz(func(t *testing.T, frame []byte, checks uint8) {
		cfg := portsectest.Config()
		cfg.Checks = portsec.Checks(checks) & portsec.All
		before := slices.Clone(frame)
		why := portsec.NewChecker(cfg).Verdict(frame[:len(frame):len(frame)])
		if !slices.Equal(frame, before) {
			t.Fatal("the frame has changed")
		}
		if int(why) >= portsec.Reasons {
			t.Fatalf("reason %d", why)
		}
		if why == portsec.Pass {
			for c := portsec.Checks(1); c <= portsec.All && c != 0; c <<= 1 {
				less := cfg
				less.Checks &^= c
				if now := portsec.NewChecker(less).Verdict(frame); now != portsec.Pass {
					t.Fatalf("passes %s, but for %s: %s", cfg.Checks, less.Checks, now)
				}
			}
		}
	})
}
