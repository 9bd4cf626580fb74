package policy

import (
	"net/netip"
	"testing"

	"vmnet/macvtap/vtap"
)

// ips returns addresses in the form of --ip.
func ips(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		p, err := ParseIP(text)
		if err != nil {
			panic(err)
		}
		all = append(all, p)
	}
	return all
}

func TestParseIP(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.7":             "192.0.2.7/32",
		"192.0.2.7/24":          "192.0.2.7/24",
		"2001:db8::1":           "2001:db8::1/128",
		"2001:db8::/64":         "2001:db8::/64",
		"":                      "",
		"192.0.2":               "",
		"192.0.2.7/33":          "",
		"fe80::1%eth0":          "",
		"fe80::1%eth0/64":       "",
		"::ffff:192.0.2.7":      "",
		"::ffff:192.0.2.0/120":  "",
		"192.0.2.7/255.255.0.0": "",
	} {
		got, err := ParseIP(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}

const lowerRules = `rules:
- {users: [1], lowers: [eth1]}
- users: [2]
  lowers: [eth1]
  modes: [passthru, l2, l3]
  ips: [192.0.2.0/28, "2001:db8::/64", 198.51.100.7]
- {users: [3], lowers: [eth1], modes: [], ips: []}
`

// A parent device in a rule does not grant every mode.
func TestLowers(t *testing.T) {
	p := parse(t, lowerRules)
	mode := func(uid int, mode string) Request {
		return Request{UID: uid, Lower: "eth1", Kind: vtap.Macvtap, Mode: mode}
	}
	ip := func(uid int, addrs ...string) Request {
		return Request{UID: uid, Lower: "eth1", Kind: vtap.IPVtap, Mode: "l2", Addrs: ips(addrs...)}
	}
	for _, tc := range []struct {
		name string
		q    Request
		want string
	}{
		{"bridge", mode(1, "bridge"), "policy.yaml:2"},
		{"vepa", mode(1, "vepa"), "policy.yaml:2"},
		{"private", mode(1, "private"), "policy.yaml:2"},
		{
			"passthru", mode(1, "passthru"),
			"denied: policy.yaml:2: mode passthru is not among bridge, vepa, private, l2, l3 (write modes: [bridge, vepa, private, l2, l3, passthru])",
		},
		{
			"source", mode(1, "source"),
			"denied: policy.yaml:2: mode source is not among bridge, vepa, private, l2, l3 (write modes: [bridge, vepa, private, l2, l3, source])",
		},
		{
			"an address", ip(1, "192.0.2.7"),
			`denied: policy.yaml:2: IP address 192.0.2.7 may not be asked for (write ips: ["192.0.2.7"])`,
		},
		{"passthru is listed", mode(2, "passthru"), "policy.yaml:3"},
		{
			"bridge is not", mode(2, "bridge"),
			"denied: policy.yaml:5: mode bridge is not among passthru, l2, l3 (add bridge to modes)",
		},
		{
			"no modes", mode(3, "bridge"),
			"denied: policy.yaml:7: mode bridge may not be asked for (add bridge to modes)",
		},
		{"within", ip(2, "192.0.2.15", "2001:db8::1", "198.51.100.7"), "policy.yaml:3"},
		{"the guest's own prefixes", ip(2, "192.0.2.1/8", "2001:db8::1/48"), "policy.yaml:3"},
		{
			"one outside", ip(2, "192.0.2.15", "192.0.2.16"),
			`denied: policy.yaml:6: IP address 192.0.2.16 is not among 192.0.2.0/28, 2001:db8::/64, 198.51.100.7/32 (add "192.0.2.16" to ips)`,
		},
		{
			"IPv6 outside", ip(2, "2001:db8:1::1"),
			`denied: policy.yaml:6: IP address 2001:db8:1::1 is not among 192.0.2.0/28, 2001:db8::/64, 198.51.100.7/32 (add "2001:db8:1::1" to ips)`,
		},
		{
			"a network around it",
			ip(2, "192.0.0.0/16"),
			`denied: policy.yaml:6: IP address 192.0.0.0 is not among 192.0.2.0/28, 2001:db8::/64, 198.51.100.7/32 (add "192.0.0.0" to ips)`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) { checkVerdict(t, p.Decide(tc.q), tc.want) })
	}
}

func TestGuests(t *testing.T) {
	p := parse(t, `rules:
- {users: [1], bridges: [br0]}
- users: [2]
  bridges: [br0]
  guests: ["alice-*", "my vm"]
- {users: [3], bridges: [br0], guests: []}
`)
	for _, tc := range []struct {
		name  string
		uid   int
		guest string
		want  string
	}{
		{"any", 1, "lab", "policy.yaml:2"},
		{"hers", 2, "alice-1", "policy.yaml:3"},
		{"with a space", 2, "my vm", "policy.yaml:3"},
		{
			"another's", 2, "lab",
			"denied: policy.yaml:5: guest lab is not among alice-*, my vm (use another name, or add lab to guests)",
		},
		{
			"beginning alike", 2, "alice",
			"denied: policy.yaml:5: guest alice is not among alice-*, my vm (use another name, or add alice to guests)",
		},
		{
			"odd", 2, "Alice 1",
			`denied: policy.yaml:5: guest "Alice 1" is not among alice-*, my vm (use another name, or add "Alice 1" to guests)`,
		},
		{"none named", 2, "", "policy.yaml:3"},
		{
			"no guests", 3, "lab",
			"denied: policy.yaml:6: guest lab may not be asked for (use another name, or add lab to guests)",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkVerdict(t, p.Decide(Request{UID: tc.uid, Guest: tc.guest, Bridge: "br0"}), tc.want)
		})
	}
}
