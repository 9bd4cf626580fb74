package policy

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge/brport"
	"vmnet/internal/leaktest"
	"vmnet/internal/strictyaml"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const example = `# who may have what
rules:
  - users: [root, 1000]
    groups: [daemon]
    bridges: [br0, "lab-*", 10]
    lowers: [eth1]
    modes: [bridge, passthru, l3]
    ips: [192.0.2.0/24, 198.51.100.7, "2001:db8::/32", 2001:db8::1]
    guests: ["alice-*", "my vm"]
    vlans: [10, 20-29]
    port: [isolated, hairpin]
    macs: ["52:54:00:00:00:00/24", 02:00:00:00:00:01]
    nics: 4
    queues: 16
  - {users: ["*"], bridges: [br1], require: [isolated, vlan], vlans: "5,7-9", macs: []}
profiles:
  lab: {bridge: br1, vlan: 10, isolated: true, queues: 2}
  tree:
    trunk: [2-5, 7]
    native: 1
    hairpin: true
    no-learning: true
    no-flood: false
    forward: [lldp, eapol]
scripts:
  - {interface: "tap1??", profile: lab}
  - {interface: "tap*", profile: tree}
`

func parse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParse(t *testing.T) {
	for name, text := range map[string]string{
		"as it is":        example,
		"CRLF":            strings.ReplaceAll(example, "\n", "\r\n"),
		"byte order mark": "\ufeff" + example,
		"a document":      "---\n" + example,
	} {
		t.Run(name, func(t *testing.T) {
			p := parse(t, text)
			if p.Rules() != 2 {
				t.Errorf("%d rules", p.Rules())
			}
			if diff := cmp.Diff([]string{"lab", "tree"}, p.Profiles()); diff != "" {
				t.Error(diff)
			}
			lab := Profile{Bridge: "br1", Port: brport.Settings{VLAN: 10, Isolated: true}, Queues: 2}
			tree := Profile{Port: brport.Settings{
				Trunk:  []brport.VLANRange{{First: 2, Last: 5}, {First: 7, Last: 7}},
				Native: 1, Hairpin: true, NoLearning: true, Forward: 1<<3 | 1<<14,
			}}
			checkProfile(t, p, "lab", lab)
			checkProfile(t, p, "tree", tree)
			tree.Bridge = "br0"
			for ifname, want := range map[string]Profile{
				"tap123": lab, "tap12": tree, "tap0": tree,
				"vnet0": {Bridge: "br0"},
			} {
				if diff := cmp.Diff(want, p.Script(ifname)); diff != "" {
					t.Errorf("%s: %s", ifname, diff)
				}
			}
		})
	}
}

func checkProfile(t *testing.T, p *Policy, name string, want Profile) {
	t.Helper()
	got, err := p.Profile(name)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%s: %v %s", name, err, diff)
	}
}

func TestNoProfile(t *testing.T) {
	for _, tc := range []struct {
		p    *Policy
		want string
	}{
		{nil, `no profile "x": there is no /etc/vmnet/policy.yaml (write it, with: profiles: {NAME: {bridge: br0}})`},
		{parse(t, example), `no profile "x" in policy.yaml (it has lab, tree)`},
		{parse(t, ""), `no profile "x" in policy.yaml (it has none)`},
	} {
		if _, err := tc.p.Profile("x"); err == nil || err.Error() != tc.want {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
	if got := (*Policy)(nil).Script("tap0"); !cmp.Equal(got, Profile{Bridge: "br0"}) {
		t.Errorf("%+v", got)
	}
}

func TestParseErrors(t *testing.T) {
	rule := func(s string) string { return "rules:\n  - users: [alice]\n    bridges: [br0]\n    " + s + "\n" }
	for _, tc := range []struct{ name, text, want string }{
		{
			"unknown key", "rulez: []\n",
			"1:1: the file has no key \"rulez\" (want rules, profiles, scripts), in `rulez: []`",
		},
		{
			"unknown key of a rule",
			rule(
				"vlan: 10"),
			"4:5: a rule has no key \"vlan\" (want users, groups, bridges, networks, lowers, uplinks, " +
				"share-memory, modes, ips, guests, vlans, port, require, port-security, ethertypes, allow-in, max-rate-up, " +
				"max-rate-down, shape, iface-ids, ovsdb, macs, nics, queues), in `vlan: 10`",
		},
		{
			"duplicate key", rule("bridges: [br1]"),
			"4:5: mapping key \"bridges\" already defined at [3:5], in `bridges: [br1]`",
		},
		{
			"duplicate profile", "profiles:\n  a: {bridge: br0}\n  a: {bridge: br1}\n",
			"3:3: mapping key \"a\" already defined at [2:3], in `a: {bridge: br1}`",
		},
		{"syntax", "rules: [\n", "1:8: sequence end token ']' not found, in `rules: [`"},
		{"tab", "rules:\n\t- x\n", "2:1: found character '\t' that cannot start any token, in `- x`"},
		{"no mapping", "- a\n", "1:1: the file is not a mapping of keys to values, in `- a`"},
		{"scalar", "rules\n", "1:1: the file is not a mapping of keys to values, in `rules`"},
		{"no list", "rules: {}\n", "1:8: rules is not a list (write [a, b]), in `rules: {}`"},
		{"null", "rules:\n", "1:8: rules is not a list (write [a, b]), in `rules:`"},
		{"scalar for a list", rule("lowers: eth0"), "4:13: lowers is not a list (write [a, b]), in `lowers: eth0`"},
		{
			"nobody", "rules:\n  - bridges: [br0]\n",
			"2:5: the rule has no users (add users or groups), in `- bridges: [br0]`",
		},
		{
			"nothing", "rules:\n  - users: [alice]\n",
			"2:5: the rule allows nothing (add bridges, networks, lowers, uplinks or share-memory), in `- users: [alice]`",
		},
		{"anchor", "rules: &a []\n", "1:8: rules is not a list (write [a, b]), in `rules: &a []`"},
		{"alias", "rules: *a\n", "1:8: rules is not a list (write [a, b]), in `rules: *a`"},
		{"tag", "rules: !!seq []\n", "1:8: rules is not a list (write [a, b]), in `rules: !!seq []`"},
		{"merge", "<<: {rules: []}\n", "1:1: a key of the file is not a plain value, in `<<: {rules: []}`"},
		{
			"two documents", "rules: []\n---\nrules: []\n",
			"3:1: a second document in the file (remove it), in `rules: []`",
		},
		{"block scalar", rule("lowers: [a]\n    nics: |\n      4"), "5:11: nics is not a plain value, in `nics: |`"},
		{"null in a list", rule("lowers: [~]"), "4:14: lowers is not a plain value, in `lowers: [~]`"},
		{"list in a list", rule("lowers: [[a]]"), "4:14: lowers is not a plain value, in `lowers: [[a]]`"},
		{
			"class in a pattern", rule(`lowers: ["eth[01]"]`),
			"4:14: lowers: \"eth[01]\" is not a name or pattern (only * for any text and ? for any byte are special), " +
				"in `lowers: [\"eth[01]\"]`",
		},
		{
			"empty name", rule(`lowers: [""]`),
			"4:14: lowers: \"\" is not a name or pattern (only * for any text and ? for any byte are special), in " +
				"`lowers: [\"\"]`",
		},
		{
			"groups of anybody",
			rule(`groups: ["*"]`), "4:14: groups: \"*\": write users: [\"*\"] for everybody, in `groups: [\"*\"]`",
		},
		{
			"VLAN", rule("vlans: [0]"),
			"4:12: vlans: invalid port: VLAN \"0\": want 1 to 4094, in lists such as 2-5,7, in `vlans: [0]`",
		},
		{
			"VLANs backwards", rule("vlans: [9-2]"),
			"4:12: vlans: invalid port: VLANs 9-2: want the lower number first, in `vlans: [9-2]`",
		},
		{
			"port", rule("port: [nohairpin]"),
			"4:12: port: \"nohairpin\": want isolated, hairpin, no-learning, no-flood, forward, in `port: [nohairpin]`",
		},
		{
			"require", rule("require: [hairpin]"),
			"4:15: require: \"hairpin\": want isolated, vlan, in `require: [hairpin]`",
		},
		{
			"MAC", rule("macs: [52:54]"),
			"4:12: macs: \"52:54\": want six bytes and a prefix length, such as 52:54:00:00:00:00/24, in `macs: [52:54]`",
		},
		{
			"MAC bits", rule("macs: [52:54:00:00:00:00/49]"),
			"4:12: macs: \"52:54:00:00:00:00/49\": want six bytes and a prefix length, such as " +
				"52:54:00:00:00:00/24, in `macs: [52:54:00:00:00:00/49]`",
		},
		{
			"MAC behind the bits", rule("macs: [52:54:00:00:00:01/24]"),
			"4:12: macs: \"52:54:00:00:00:01/24\": bits after the first 24 are ignored (make them zero), in " +
				"`macs: [52:54:00:00:00:01/24]`",
		},
		{
			"mode", rule("modes: [l3s]"),
			"4:13: modes: \"l3s\": want bridge, vepa, private, passthru, source, l2, l3, in `modes: [l3s]`",
		},
		{
			"IP", rule("ips: [192.0.2]"),
			"4:11: ips: \"192.0.2\": want an IP address such as 192.0.2.7 or 2001:db8::/64, in `ips: [192.0.2]`",
		},
		{
			"IP behind the bits", rule("ips: [192.0.2.7/24]"),
			"4:11: ips: \"192.0.2.7/24\": bits after the first 24 are ignored (write 192.0.2.0/24), in `ips: [192.0.2.7/24]`",
		},
		{
			"guest", rule(`guests: ["a[1]"]`),
			"4:14: guests: \"a[1]\" is not a name or pattern (only * for any text and ? for any byte are " +
				"special), in `guests: [\"a[1]\"]`",
		},
		{"nics", rule("nics: 0"), "4:11: nics is \"0\": want 1 to 1048576, in `nics: 0`"},
		{"queues", rule("queues: 257"), "4:13: queues is \"257\": want 1 to 256, in `queues: 257`"},
		{"queues as text", rule("queues: many"), "4:13: queues is \"many\": want 1 to 256, in `queues: many`"},
		{
			"profile key", "profiles:\n  a: {vlans: 1}\n",
			"2:7: a profile has no key \"vlans\" (want bridge, network, ovsdb, vlan, trunk, native, isolated, hairpin, " +
				"no-learning, no-flood, forward, queues), in `a: {vlans: 1}`",
		},
		{
			"profile VLANs", "profiles:\n  a: {vlan: 1, trunk: 2-5}\n",
			"2:3: profile a: invalid port: both VLAN and trunk: a port is an access port of one VLAN or a " +
				"trunk of several (use the native VLAN for a trunk's untagged frames), in `a: {vlan: 1, trunk: 2-5}`",
		},
		{
			"profile flag", "profiles:\n  a: {isolated: yes}\n",
			"2:17: isolated is neither true nor false, in `a: {isolated: yes}`",
		},
		{
			"profile bridge", "profiles:\n  a: {bridge: \"br 0\"}\n",
			"2:15: bridge name \"br 0\": want 1 to 15 bytes without spaces, '/', ':' or '%', in `a: {bridge: \"br 0\"}`",
		},
		{
			"profile name", "profiles:\n  \"a b\": {}\n",
			"2:3: profile name \"a b\": want 1 to 64 bytes without spaces, in `\"a b\": {}`",
		},
		{
			"script without profile", "scripts: [{interface: tap0}]\n",
			"1:11: a script needs both interface and profile, in `scripts: [{interface: tap0}]`",
		},
		{
			"script of an unknown profile", "scripts: [{interface: tap0, profile: b}]\nprofiles: {a: {}}\n",
			"1:38: there is no profile \"b\" (the profiles are a), in `scripts: [{interface: tap0, profile: b}]`",
		},
		{"deep", "rules: [[[[[[[[[]]]]]]]]]\n", "1:16: nested too deep, in `rules: [[[[[[[[[]]]]]]]]]`"},
		{"far right", strings.Repeat("- ", 1000), "1:81: \"-\" is too far to the right (indent less), in `" +
			strings.TrimSpace(strings.Repeat("- ", 40)) + " ...`"},
		{
			"many rules", "rules:\n" + strings.Repeat("- {users: [1], bridges: [a]}\n", 1001),
			"2:1: rules has more than 1000 entries, in `- {users: [1], bridges: [a]}`",
		},
		{"large", strings.Repeat("#\n", 1<<19) + "#", "1:1: the file has more than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tc.text))
			var at *strictyaml.Error
			if !errors.As(err, &at) || err.Error() != "f:"+tc.want {
				t.Errorf("got  %v\nwant f:%s", err, tc.want)
			}
		})
	}
}

// The example of the man page is valid.
func TestManPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/man/policy.yaml.5.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "# EXAMPLES\n")
	text, _, _ = strings.Cut(text, "\nWhat may")
	p := parse(t, strings.ReplaceAll(text, "\n    ", "\n"))
	if p.Rules() != 4 || p.Script("tap150").Bridge != "lab-1" || p.Script("tap15").Bridge != "br0" {
		t.Errorf("%+v", p)
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "rules: []\n", "{}\n"} {
		p := parse(t, text)
		if p.Rules() != 0 || len(p.Warnings()) != 1 || p.Decide(Request{UID: 1000, Bridge: "br0"}).Allowed {
			t.Errorf("%q: %+v", text, p)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		glob, name string
		want       bool
	}{
		{"br0", "br0", true},
		{"br0", "br00", false},
		{"br0", "br", false},
		{"*", "", true},
		{"*", "br0", true},
		{"lab-*", "lab-", true},
		{"lab-*", "lab-1", true},
		{"lab-*", "lab", false},
		{"tap1??", "tap123", true},
		{"tap1??", "tap12", false},
		{"*0", "br10", true},
		{"*0", "br01", false},
		{"a*b*c", "aXbbYc", true},
		{"a*b*c", "aXcYb", false},
		{"**", "x", true},
		{"?*", "", false},
		{"a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
	} {
		if got := match(tc.glob, tc.name); got != tc.want {
			t.Errorf("match(%q, %q) = %v", tc.glob, tc.name, got)
		}
	}
}
