package policy

import (
	"strings"
	"testing"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
)

// TestPortSecurity: a rule demands checks of NICs of every kind, and a user escapes them neither by
// another address nor by another EtherType.
func TestPortSecurity(t *testing.T) {
	p := parse(t, `rules:
- users: [1]
  bridges: [br0]
  lowers: [eth0]
  uplinks: [eth0]
  ips: [192.0.2.64/28, "2001:db8::/64"]
  port-security: [mac, ip]
  ethertypes: ["0x88f7"]
- {users: [2], networks: [lab], port-security: all}
- {users: [3], bridges: [br0]}
`)
	request := func(uid int, checks portsec.Checks, q Request, addrs ...string) Request {
		q.UID, q.Checks, q.Addrs = uid, checks, ips(addrs...)
		return q
	}
	const need = portsec.MAC | portsec.IP
	on, lab := Request{Bridge: "br0"}, Request{Bridge: "lab", Network: "lab"}
	macvtap := Request{Lower: "eth0", Kind: vtap.Macvtap, Mode: "bridge"}
	ipvtap := Request{Lower: "eth0", Kind: vtap.IPVtap, Mode: "l2"}
	typed := Request{Bridge: "br0", EtherTypes: []portsec.EtherType{0x88b5}}
	ptp := Request{Bridge: "br0", EtherTypes: []portsec.EtherType{0x88f7}}
	for _, tc := range []struct {
		q    Request
		want string // of the denial; empty for none
	}{
		{request(1, need, on, "192.0.2.65"), ""},
		{request(1, portsec.All, on, "192.0.2.65", "2001:db8::/64"), ""},
		{request(1, need, macvtap, "192.0.2.65"), ""},
		{request(1, need, ipvtap, "192.0.2.65/24"), ""},
		{request(1, need, ptp, "192.0.2.65"), ""},
		{request(1, 0, on), "port security mac,ip must be asked for (ask with --port-security mac,ip"},
		{request(1, portsec.MAC, on), "port security ip must be asked for (ask with --port-security mac,ip"},
		{request(1, portsec.All&^portsec.MAC, on, "192.0.2.65"), "port security mac must be asked for"},
		{request(1, 0, macvtap), "must be asked for"},
		{request(1, 0, ipvtap, "192.0.2.65"), "must be asked for"},
		{request(1, 0, Request{Routed: "eth0"}, "192.0.2.65"), "must be asked for"},
		{request(1, need, on, "192.0.2.1"), "IP address 192.0.2.1 is not among 192.0.2.64/28"},
		{request(1, need, macvtap, "192.0.2.1"), "IP address 192.0.2.1 is not among"},
		{request(1, need, on, "192.0.2.0/24"), "IP address 192.0.2.0/24 is not among"},
		{request(1, need, on, "0.0.0.0/0"), "IP address 0.0.0.0/0 is not among"},
		{request(1, need, typed, "192.0.2.65"), "EtherType 0x88b5 is not among 0x88f7 (add 0x88b5 to ethertypes)"},
		{request(2, portsec.All, lab, "10.66.0.20"), ""},
		{request(2, portsec.All, lab, "10.66.0.0/24"), "IP address 10.66.0.0/24 may not be asked for"},
		{request(2, 0, lab, "10.66.0.20"), "port security all must be asked for"},
		{request(3, portsec.All, on, "192.0.2.1", "0.0.0.0/0"), ""},
		{request(3, need, typed, "192.0.2.1"), ""},
		{request(3, 0, on, "192.0.2.1"), "need a network, an uplink, an ipvtap or port security"},
	} {
		err := p.Decide(tc.q).Err()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.q, err, tc.want)
		}
	}
	if err := (*Policy)(nil).Decide(request(1, portsec.All, on, "192.0.2.1")).Err(); err != nil {
		t.Errorf("without a policy: %v", err)
	}
	for text, want := range map[string]string{
		"{users: [1], bridges: [br0], port-security: all}":                        "compares with the addresses",
		"{users: [1], lowers: [eth0], port-security: [ip]}":                       "add ips",
		"{users: [1], bridges: [br0], port-security: [stp]}":                      `port security "stp"`,
		"{users: [1], bridges: [br0], ethertypes: [\"0x88f7\"]}":                  "add port-security",
		"{users: [1], bridges: [br0], port-security: mac, ethertypes: [\"arp\"]}": `EtherType "arp"`,
	} {
		if _, err := Parse("f", []byte("rules:\n- "+text+"\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestAllowIn: a rule demands that what comes in is filtered, of NICs of every kind, and a user can
// ask for less only.
func TestAllowIn(t *testing.T) {
	p := parse(t, `rules:
- users: [1]
  bridges: [br0]
  lowers: [eth0]
  allow-in: ["tcp:22,from=10.0.0.0/8", icmp]
- {users: [2], bridges: [br0], allow-in: [answers]}
- {users: [3], bridges: [br0]}
`)
	rules := func(text ...string) (all inbound.Rules) {
		for _, word := range text {
			r, err := inbound.ParseRule(word)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		return all
	}
	on, macvtap := Request{Bridge: "br0"}, Request{Lower: "eth0", Kind: vtap.Macvtap, Mode: "bridge"}
	for _, tc := range []struct {
		uid   int
		q     Request
		asked inbound.Rules
		want  string // of the denial; empty for none
	}{
		{1, on, rules("icmp", "tcp:22,from=10.0.0.0/8"), ""},
		{1, on, rules("tcp:22,from=10.1.2.3"), ""},
		{1, macvtap, rules("answers"), ""},
		{1, on, nil, "must be filtered (ask with --allow-in tcp:22,from=10.0.0.0/8 --allow-in icmp, or less"},
		{1, macvtap, nil, "must be filtered"},
		{1, on, rules("tcp:22"), "tcp:22 is not among tcp:22,from=10.0.0.0/8, icmp (add"},
		{1, on, rules("icmp", "any"), "any is not among"},
		{2, on, rules("answers"), ""},
		{2, on, rules("icmp"), "icmp is not among answers"},
		{3, on, rules("any"), ""},
		{3, on, nil, ""},
	} {
		tc.q.UID, tc.q.AllowIn = tc.uid, tc.asked
		v := p.Decide(tc.q)
		text := ""
		if !v.Allowed {
			text = v.Reasons[0].String()
		}
		if (text == "") != (tc.want == "") || !strings.Contains(text, tc.want) {
			t.Errorf("%d asks for %q: %q, want %q", tc.uid, tc.asked, text, tc.want)
		}
	}
}
