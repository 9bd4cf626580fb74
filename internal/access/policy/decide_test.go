package policy

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/internal/strictyaml"
	"vmnet/macvtap/vtap"
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// lower turns a request that has only a parent device into one for a macvtap.
func lower(q Request) Request {
	if q.Lower != "" && q.Kind == "" {
		q.Kind, q.Mode = vtap.Macvtap, "bridge"
	}
	return q
}

// rules of the tests; uid 1000 and group 7 need no names.
const rules = `rules:
- users: [1000, root]
  bridges: [br0, "lab-*"]
  vlans: [10, 20-29]
  port: [hairpin]
  macs: ["52:54:00:00:00:00/24"]
  nics: 2
- groups: [7]
  lowers: [eth1]
  queues: 2
- users: [2000]
  bridges: [br1]
  require: [isolated, vlan]
  vlans: [5]
`

func TestDecide(t *testing.T) {
	p := parse(t, rules)
	port := func(c brport.Settings) Request { return Request{UID: 1000, Bridge: "br0", Port: c} }
	trunk := func(list string, native int) Request {
		r, err := brport.ParseVLANs(list)
		if err != nil {
			t.Fatal(err)
		}
		return port(brport.Settings{Trunk: r, Native: native})
	}
	for _, tc := range []struct {
		name string
		q    Request
		want string // what allows it, or the error
	}{
		{"bridge", Request{UID: 1000, Bridge: "br0"}, "policy.yaml:2"},
		{"glob", Request{UID: 1000, Bridge: "lab-7"}, "policy.yaml:2"},
		{"group", Request{UID: 1, GIDs: []int{3, 7}, Lower: "eth1"}, "policy.yaml:8"},
		{"another rule allows", Request{UID: 1000, GIDs: []int{7}, Lower: "eth1"}, "policy.yaml:8"},
		{"VLAN", port(brport.Settings{VLAN: 10}), "policy.yaml:2"},
		{"trunk", trunk("20-29", 10), "policy.yaml:2"},
		{"isolated", port(brport.Settings{Isolated: true}), "policy.yaml:2"},
		{"hairpin", port(brport.Settings{Hairpin: true}), "policy.yaml:2"},
		{"MAC", Request{UID: 1000, Bridge: "br0", MAC: mac("52:54:00:ff:ff:ff")}, "policy.yaml:2"},
		{"NICs", Request{UID: 1000, Bridge: "br0", NICs: 2}, "policy.yaml:2"},
		{"queues", Request{UID: 1000, Bridge: "br0", Queues: 8}, "policy.yaml:2"},
		{
			"required",
			Request{UID: 2000, Bridge: "br1", Port: brport.Settings{VLAN: 5, Isolated: true}},
			"policy.yaml:11",
		},
		{"any MAC", Request{
			UID: 2000, Bridge: "br1", MAC: mac("02:00:00:00:00:01"),
			Port: brport.Settings{VLAN: 5, Isolated: true},
		}, "policy.yaml:11"},
		{"root", Request{UID: 0, Lower: "eth9", Queues: 256, Port: brport.Settings{}}, "the privilege of root"},

		{
			"nobody",
			Request{UID: 3000, Bridge: "br0"},
			`denied: policy.yaml: no rule is for uid 3000 (add under rules: - {users: [3000], bridges: [br0]})`,
		},
		{
			"another bridge",
			Request{UID: 1000, Bridge: "br9"},
			`denied: policy.yaml:3: bridge br9 is not among br0, lab-* (add br9 to bridges)`,
		},
		{
			"an odd name",
			Request{UID: 1000, Bridge: `a"b`},
			`denied: policy.yaml:3: bridge "a\"b" is not among br0, lab-* (add "a\"b" to bridges)`,
		},
		{
			"no lowers",
			Request{UID: 1000, Lower: "eth1"},
			`denied: policy.yaml:2: lower eth1 may not be asked for (add eth1 to lowers)`,
		},
		{
			"two rules",
			Request{UID: 1000, GIDs: []int{7}, Lower: "eth2"},
			`denied: policy.yaml:2: lower eth2 may not be asked for (add eth2 to lowers); policy.yaml:9: lower eth2 is not among eth1 (add eth2 to lowers)`,
		},
		{
			"VLAN outside", port(brport.Settings{VLAN: 30}),
			`denied: policy.yaml:4: VLAN 30 is not among 10, 20-29 (add 30 to vlans)`,
		},
		{"trunk outside", trunk("20-30", 0), `denied: policy.yaml:4: VLAN 30 is not among 10, 20-29 (add 30 to vlans)`},
		{
			"trunk across a gap",
			trunk("10-21", 0), `denied: policy.yaml:4: VLAN 11 is not among 10, 20-29 (add 11 to vlans)`,
		},
		{"whole trunk", trunk("1-4094", 0), `denied: policy.yaml:4: VLAN 1 is not among 10, 20-29 (add 1 to vlans)`},
		{"native outside", trunk("20", 1), `denied: policy.yaml:4: VLAN 1 is not among 10, 20-29 (add 1 to vlans)`},
		{
			"forward", port(brport.Settings{Forward: 1 << 14}),
			`denied: policy.yaml:5: forward may not be asked for (add forward to port)`,
		},
		{
			"no-flood", port(brport.Settings{NoFlood: true}),
			`denied: policy.yaml:5: no-flood may not be asked for (add no-flood to port)`,
		},
		{
			"no-learning", port(brport.Settings{NoLearning: true}),
			`denied: policy.yaml:5: no-learning may not be asked for (add no-learning to port)`,
		},
		{
			"MAC outside",
			Request{UID: 1000, Bridge: "br0", MAC: mac("52:54:01:00:00:00")},
			`denied: policy.yaml:6: MAC 52:54:01:00:00:00 is not among 52:54:00:00:00:00/24 (ask for none, or add "52:54:01:00:00:00" to macs)`,
		},
		{
			"too many NICs",
			Request{UID: 1000, Bridge: "br0", NICs: 3},
			`denied: policy.yaml:7: it would be NIC 3 of uid 1000, who may have 2 at one time (detach one, or raise nics)`,
		},
		{
			"too many queues",
			Request{UID: 1, GIDs: []int{7}, Lower: "eth1", Queues: 3},
			`denied: policy.yaml:10: 3 queues are more than 2 (ask for 2, or write queues: 3)`,
		},
		{
			"default queues",
			Request{UID: 1000, Bridge: "br0", Queues: 9},
			`denied: policy.yaml:2: 9 queues are more than 8 (ask for 8, or write queues: 9)`,
		},
		{
			"not isolated",
			Request{UID: 2000, Bridge: "br1", Port: brport.Settings{VLAN: 5}},
			`denied: policy.yaml:13: isolated must be asked for (ask with --isolated)`,
		},
		{
			"in no VLAN",
			Request{UID: 2000, Bridge: "br1", Port: brport.Settings{Isolated: true}},
			`denied: policy.yaml:13: vlan must be asked for (ask with --vlan)`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) { checkVerdict(t, p.Decide(lower(tc.q)), tc.want) })
	}
}

func checkVerdict(t *testing.T, v Verdict, want string) {
	t.Helper()
	got := v.By
	if err := v.Err(); err != nil {
		got = err.Error()
	}
	if got != want || v.Allowed != (v.By != "") || v.Allowed == (len(v.Reasons) > 0) {
		t.Errorf("got  %s\nwant %s\n%+v", got, want, v)
	}
}

// Requests that are invalid for every user, root included, are denied before the rules are read.
func TestInvalidRequests(t *testing.T) {
	p := parse(t,
		"rules: [{users: [\"*\"], bridges: [\"*\"], lowers: [\"*\"], ips: [0.0.0.0/0, \"::/0\"], modes: [bridge, l2], vlans: [1-4094]}]\n")
	for _, q := range []Request{
		{},
		{Bridge: "br0", Lower: "eth0"},
		{Bridge: "a/b"},
		{Bridge: "averylongbridgename"},
		{Lower: "a b", Kind: vtap.Macvtap, Mode: "bridge"},
		{Lower: "eth0"},
		{Lower: "eth0", Kind: vtap.Macvtap},
		{Lower: "eth0", Kind: "macvlan", Mode: "bridge"},
		{Lower: "eth0", Kind: vtap.Macvtap, Mode: "l2"},
		{Lower: "eth0", Kind: vtap.Macvtap, Mode: "bridge", Addrs: ips("192.0.2.7")},
		{Lower: "eth0", Kind: vtap.IPVtap, Mode: "bridge", Addrs: ips("192.0.2.7")},
		{Lower: "eth0", Kind: vtap.IPVtap, Mode: "l2"},
		{Lower: "eth0", Kind: vtap.IPVtap, Mode: "l2", Addrs: []netip.Prefix{{}}},
		{
			Lower: "eth0", Kind: vtap.IPVtap, Mode: "l2",
			Addrs: []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.7/128")},
		},
		{Bridge: "br0", Mode: "bridge"},
		{Bridge: "br0", Kind: vtap.IPVtap, Addrs: ips("192.0.2.7")},
		{Bridge: "br0", Port: brport.Settings{VLAN: 4095}},
		{Bridge: "br0", Port: brport.Settings{VLAN: -1}},
		{Bridge: "br0", Port: brport.Settings{Trunk: []brport.VLANRange{{First: 10, Last: 5}}}},
		{Bridge: "br0", Port: brport.Settings{Other: "untagged:20"}},
		{Bridge: "br0", MAC: mac("01:00:5e:00:00:01")},
		{Bridge: "br0", MAC: mac("00:00:00:00:00:00")},
		{Bridge: "br0", MAC: net.HardwareAddr{}},
		{Bridge: "br0", Queues: -1},
		{Bridge: "br0", NICs: -1},
		{Bridge: "br0", UID: -1},
	} {
		for _, uid := range []int{0, 1000} {
			if q.UID == 0 {
				q.UID = uid
			}
			if v := p.Decide(q); v.Allowed || v.Err() == nil {
				t.Errorf("%+v is allowed", q)
			}
			if v := (*Policy)(nil).Decide(q); v.Allowed {
				t.Errorf("%+v is allowed without a file", q)
			}
		}
	}
}

func TestWithoutFile(t *testing.T) {
	const none = "denied: /etc/vmnet/policy.yaml: it does not exist, and without it "
	const write = " (write it as policy.yaml(5) describes)\nrules:\n  - {users: [\"*\"], bridges: [\"*\"]}\n  "
	for _, tc := range []struct {
		name string
		q    Request
		want string
	}{
		{
			"bridge",
			Request{UID: 1000, Bridge: "br0", NICs: 1000, Queues: 8, MAC: mac("52:54:00:00:00:01")},
			"the defaults without /etc/vmnet/policy.yaml",
		},
		{
			"isolated",
			Request{UID: 1000, Bridge: "br0", Port: brport.Settings{Isolated: true}},
			"the defaults without /etc/vmnet/policy.yaml",
		},
		{"root", Request{Lower: "eth0"}, "the privilege of root"},
		{"lower", Request{UID: 1000, Lower: "eth1"}, none + "lower eth1 may not be asked for" + write +
			"- {users: [1000], lowers: [eth1]}"},
		{
			"VLAN",
			Request{UID: 1000, Bridge: "br0", Port: brport.Settings{VLAN: 30}},
			none + "VLAN 30 may not be asked for" + write + "- {users: [1000], bridges: [br0], vlans: [30]}",
		},
		{
			"port",
			Request{UID: 1000, Bridge: "10", Port: brport.Settings{Hairpin: true, NoFlood: true}},
			none + "hairpin may not be asked for" + write +
				"- {users: [1000], bridges: [\"10\"], port: [hairpin, no-flood]}",
		},
		{"queues", Request{UID: 1000, Bridge: "br0", Queues: 16}, none + "16 queues are more than 8" + write +
			"- {users: [1000], bridges: [br0], queues: 16}"},
	} {
		t.Run(tc.name, func(t *testing.T) { checkVerdict(t, (*Policy)(nil).Decide(lower(tc.q)), tc.want) })
	}
}

// The lines that a denial suggests allow the request, and change nothing for others.
func TestExamplesAllow(t *testing.T) {
	for _, q := range []Request{
		{UID: 1000, Lower: "eth1"},
		{UID: 1000, Lower: "null"},
		{UID: 1000, Lower: "e-1_.x"},
		{UID: 1000, Lower: "-"},
		{UID: 1000, Lower: "1e3"},
		{UID: 1000, Lower: "eth1", Kind: vtap.Macvtap, Mode: "passthru", Guest: "lab"},
		{UID: 1000, Lower: "eth1", Kind: vtap.IPVtap, Mode: "l3", Addrs: ips("192.0.2.7/24", "2001:db8::1")},
		{UID: 1000, Bridge: "*\"\\", Queues: 9},
		{UID: 1000, Bridge: "br0", Queues: 256, MAC: mac("02:00:00:00:00:01"), NICs: 7, Port: brport.Settings{
			Trunk: []brport.VLANRange{{First: 2, Last: 5}, {First: 9, Last: 9}}, Native: 7, Isolated: true,
			Hairpin: true, NoLearning: true, NoFlood: true,
		}},
	} {
		q = lower(q)
		v := (*Policy)(nil).Decide(q)
		p, err := Parse("f", []byte(v.Example))
		if strings.ContainsAny(q.Bridge, "\"\\") {
			continue // a pattern cannot contain them: the example is refused, not misread
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, v.Example)
		}
		if v := p.Decide(q); v.By != "f:3" {
			t.Errorf("%+v: %+v", q, v)
		}
		if v := p.Decide(Request{UID: 2000, Bridge: "br7"}); v.By != "f:2" {
			t.Errorf("%+v", v)
		}
	}
}

// Names are looked up in the machine's own files; daemon is everywhere.
func TestNames(t *testing.T) {
	p := parse(t, `rules:
- {users: [daemon, nosuchuser], groups: [nosuchgroup, daemon, 4294967294], bridges: [br0]}
- {users: [010, 0x10], bridges: [br1]}
`)
	n := newNames()
	uid, gid := n.user(who{name: "daemon"}), n.group(who{name: "daemon"})
	if uid <= 0 || gid <= 0 {
		t.Fatalf("daemon has uid %d, gid %d", uid, gid)
	}
	for _, tc := range []struct {
		q    Request
		want bool
	}{
		{Request{UID: uid, Bridge: "br0"}, true},
		{Request{UID: 54321, Bridge: "br0"}, false},
		{Request{UID: 54321, GIDs: []int{gid}, Bridge: "br0"}, true},
		{Request{UID: 54321, GIDs: []int{4294967294}, Bridge: "br0"}, true},
		{Request{UID: 54321, GIDs: []int{-1}, Bridge: "br0"}, false},
		{Request{UID: 10, Bridge: "br1"}, false},
		{Request{UID: 8, Bridge: "br1"}, false},
		{Request{UID: 16, Bridge: "br1"}, false},
	} {
		if v := p.Decide(tc.q); v.Allowed != tc.want {
			t.Errorf("%+v: %+v", tc.q, v)
		}
	}
	want := []string{
		`policy.yaml:2: there is no user "nosuchuser" (add the user, or correct the name)`,
		`policy.yaml:2: there is no group "nosuchgroup" (add the group, or correct the name)`,
		`policy.yaml:3: there is no user "010" (add the user, or correct the name)`,
		`policy.yaml:3: there is no user "0x10" (add the user, or correct the name)`,
	}
	if got := p.Warnings(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(rules))
	f.Add([]byte("rules: [{users: [\"*\"], bridges: [\"*\"], vlans: 1-4094}]"))
	f.Add([]byte("a: &a [*a]\n? b\n: |\n x\n<<: *a\n--- !!x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f", data)
		if err != nil {
			if p != nil || len(err.Error()) > 100<<10 {
				t.Fatalf("%v, %d bytes of error", p, len(err.Error()))
			}
			return
		}
		if len(p.rules) > strictyaml.MaxEntries || len(p.scripts) > strictyaml.MaxEntries ||
			len(p.profiles) > strictyaml.MaxEntries {
			t.Fatal("more than the bounds")
		}
		for _, name := range p.Profiles() {
			if profile, err := p.Profile(name); err != nil || profile.Port.Validate() != nil {
				t.Fatalf("%s: %+v, %v", name, profile, err)
			}
		}
		if p.Script("tap0").Bridge == "" {
			t.Fatal("a script without a bridge")
		}
		checkDecisions(t, p)
	})
}

// checkDecisions: a request that no list contains is denied, for every file.
func checkDecisions(t *testing.T, p *Policy) {
	for i := range p.rules {
		r := &p.rules[i]
		r.users, r.groups, r.anybody = nil, nil, true // no look-ups while fuzzing
	}
	full := brport.Settings{
		Trunk: []brport.VLANRange{{First: 1, Last: 4094}}, Hairpin: true,
		NoLearning: true, NoFlood: true,
	}
	v := p.Decide(Request{UID: 1000, Bridge: "br0", Port: full, Queues: 300})
	if v.Allowed || v.Err() == nil {
		t.Fatalf("300 queues: %+v", v)
	}
	for _, q := range []Request{
		{UID: 1000, Bridge: "br0"},
		lower(Request{UID: 1000, Lower: "br0"}),
		{UID: 1000, Bridge: "br0", Port: full},
	} {
		v := p.Decide(q)
		if v.Allowed == (v.Err() != nil) || v.Allowed != (v.Line > 0) || !v.Allowed && len(v.Reasons) == 0 {
			t.Fatalf("%+v", v)
		}
	}
}
