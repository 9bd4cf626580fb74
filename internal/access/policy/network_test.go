package policy

import (
	"strings"
	"testing"
)

// TestNetworks: a rule names networks, or their bridges; who may be of a network may not have its
// bridge without that.
func TestNetworks(t *testing.T) {
	p := parse(t, `rules:
- {users: [1], networks: ["lab*"]}
- {users: [2], bridges: [lab]}
- {users: [3], networks: [lab], ips: [10.66.0.64/28]}
`)
	in := func(uid int, network string, addrs ...string) Request {
		return Request{UID: uid, Bridge: network, Network: network, Addrs: ips(addrs...)}
	}
	for _, tc := range []struct {
		q    Request
		want string // of the denial; empty for none
	}{
		{in(1, "lab2", "10.66.0.20"), ""},
		{in(1, "lan"), `network lan is not among lab* (add lan to networks)`},
		{Request{UID: 1, Bridge: "lab"}, "bridge lab may not be asked for (add lab to bridges)"},
		{in(2, "lab", "10.66.0.20", "fd66::20"), ""},
		{in(2, "lan"), "network lan may not be asked for (add lan to networks)"},
		{in(3, "lab", "10.66.0.65"), ""},
		{in(3, "lab", "10.66.0.20"), "IP address 10.66.0.20 is not among 10.66.0.64/28"},
		{in(4, "lab"), "add under rules: - {users: [4], networks: [lab]}"},
		{Request{UID: 1, Bridge: "lan", Network: "lab"}, "its bridge has its name"},
		{
			Request{UID: 1, Bridge: "lab", Addrs: ips("10.66.0.20")},
			"IP addresses need a network, an uplink, an ipvtap or port security",
		},
	} {
		err := p.Decide(tc.q).Err()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.q, err, tc.want)
		}
	}
	if err := (*Policy)(nil).Decide(in(1, "lab", "10.66.0.20")).Err(); err != nil {
		t.Errorf("without a policy: %v", err)
	}
}

// TestNetworkOfProfile: a profile names a bridge or a network, whose bridge QEMU's scripts use.
func TestNetworkOfProfile(t *testing.T) {
	p := parse(t, "profiles: {lab: {network: lab}}\nscripts: [{interface: \"tap*\", profile: lab}]\n")
	if got, err := p.Profile("lab"); err != nil || got.Network != "lab" || got.Bridge != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if got := p.Script("tap1"); got.Bridge != "lab" {
		t.Errorf("%+v", got)
	}
	_, err := Parse("f", []byte("profiles: {lab: {network: lab, bridge: br0}}\n"))
	if err == nil || !strings.Contains(err.Error(), "profile lab: bridge and network") {
		t.Error(err)
	}
}

// TestUplinks: a rule names the uplinks and the addresses of routed NICs.
func TestUplinks(t *testing.T) {
	p := parse(t, `rules:
- {users: [1], uplinks: [eth0], ips: [192.0.2.64/28, "2001:db8::/64"], require: [isolated]}
- {users: [2], bridges: ["*"], lowers: ["*"], ips: [192.0.2.0/24]}
`)
	on := func(uid int, uplink string, addrs ...string) Request {
		return Request{UID: uid, Routed: uplink, Addrs: ips(addrs...)}
	}
	for _, tc := range []struct {
		q    Request
		want string // of the denial; empty for none
	}{
		{on(1, "eth0", "192.0.2.65", "2001:db8::11"), ""},
		{on(1, "eth0", "192.0.2.65", "192.0.2.11"), "IP address 192.0.2.11 is not among"},
		{on(1, "eth1", "192.0.2.65"), "uplink eth1 is not among eth0 (add eth1 to uplinks)"},
		{on(1, "eth0"), "by its IP address, and none is named"},
		{on(2, "eth0", "192.0.2.11"), "uplink eth0 may not be asked for (add eth0 to uplinks)"},
		{on(4, "eth0", "192.0.2.11"), `add under rules: - {users: [4], uplinks: [eth0], ips: ["192.0.2.11"]}`},
		{Request{UID: 1, Routed: "eth0", Bridge: "br0", Addrs: ips("192.0.2.65")}, "want one of a bridge, a parent"},
	} {
		err := p.Decide(tc.q).Err()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.q, err, tc.want)
		}
	}
	if err := (*Policy)(nil).Decide(on(1, "eth0", "192.0.2.11")).Err(); err == nil {
		t.Error("without a policy any user may have any address")
	}
}
