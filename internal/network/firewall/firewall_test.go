package firewall

import (
	"context"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestLiveObstacles: rulesets as other programs make them, listed by nft itself.
func TestLiveObstacles(t *testing.T) {
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	const forward = "chain FORWARD { type filter hook forward priority filter; policy "
	for _, tc := range []struct {
		name, rules string
		host        Host
		want        []string // the beginning of each obstacle
	}{
		{"nothing", "", Host{}, nil},
		{"ours", "table inet vmnet-lab { " + forward + "drop; }\n}", Host{}, nil},
		{"accept", "table ip filter { " + forward + "accept; }\n}", Host{}, nil},
		{
			"all", "table ip filter { chain a { accept; }\n" + forward + "drop; ct state invalid drop; jump a; }\n}",
			Host{},
			nil,
		},
		{
			"unknown", "table ip mine { " + forward + "drop; }\n}",
			Host{},
			[]string{"ip mine FORWARD of the table mine drops IPv4 traffic of guests to other networks " +
				"(nft insert rule ip mine " +
				"FORWARD iifname lab accept; nft insert rule ip mine FORWARD oifname lab ct state established,related accept)"},
		},
		{
			"Docker", "table ip filter { chain DOCKER-USER { }\n" + forward + "drop; jump DOCKER-USER; }\n}",
			Host{BridgeNetfilter: true},
			[]string{"ip filter FORWARD of Docker drops IPv4 traffic of guests to other networks, and to each other " +
				"and their " +
				"DHCP server, since net.bridge.bridge-nf-call-iptables is 1 (iptables -I DOCKER-USER -i lab -j ACCEPT; "},
		},
		{
			"Docker for IPv6", "table ip6 filter { chain DOCKER-USER { }\n" + forward + "drop; jump DOCKER-USER; }\n}",
			Host{BridgeNetfilter: true},
			[]string{"ip6 filter FORWARD of Docker drops IPv6 traffic of guests to other networks " +
				"(ip6tables -I DOCKER-USER "},
		},
		{
			"cured", "table ip filter { chain DOCKER-USER { iifname \"lab\" accept; }\n" + forward +
				"drop; jump DOCKER-USER; }\n}", Host{}, nil,
		},
		{"cured by a set", "table ip x { " + forward + "drop; iifname { \"a\", \"lab\" } accept; }\n}", Host{}, nil},
		{"cured by a pattern", "table ip x { " + forward + "drop; iifname \"la*\" accept; }\n}", Host{}, nil},
		{
			"another bridge", "table ip x { " + forward + "drop; iifname \"lab2\" accept; }\n}",
			Host{},
			[]string{"ip x FORWARD of the table x"},
		},
		{
			"all but ours", "table ip x { " + forward + "drop; iifname != \"lab\" accept; }\n}",
			Host{},
			[]string{"ip x FORWARD of the table x"},
		},
		{
			"jumps in a ring",
			"table ip x { chain a { }\nchain b { jump a; }\n" + forward + "drop; jump b; jump a; }\n}",
			Host{},
			[]string{"ip x FORWARD of the table x"},
		},
		{
			"firewalld",
			"table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; " +
				"policy accept; ct state established accept; reject with icmpx admin-prohibited; }\n}",
			Host{},
			[]string{"inet firewalld filter_FORWARD of firewalld drops traffic of guests to other networks " +
				"(firewall-cmd " +
				"--zone=trusted --add-interface=lab"},
		},
		{
			"firewalld, in a zone with the uplink",
			firewalldRules,
			Host{Uplinks: []string{"up0"}},
			nil,
		},
		{
			"firewalld, in a zone without the uplink",
			firewalldRules,
			Host{Uplinks: []string{"up1"}},
			[]string{"inet firewalld filter_FORWARD of firewalld drops"},
		},
		{
			"firewalld, in a zone that accepts",
			strings.ReplaceAll(firewalldRules, "eth1", "lab"),
			Host{Uplinks: []string{"up1"}},
			nil,
		},
		{
			"ufw", "table ip filter { chain ufw-before-forward { }\n" + forward + "drop; jump ufw-before-forward; }\n" +
				"chain INPUT { type filter hook input priority filter; policy drop; }\n}",
			Host{},
			[]string{
				"ip filter FORWARD of ufw drops IPv4 traffic of guests to other networks (ufw route allow in on lab)",
				"ip filter INPUT of ufw drops IPv4 traffic of guests to the host itself; DHCP and DNS are not affected " +
					"(ufw allow in on lab)",
			},
		},
		{
			"libvirt",
			"table ip filter { chain LIBVIRT_FWO { }\n" + forward + "accept; jump LIBVIRT_FWO; counter drop; }\n}",
			Host{},
			[]string{"ip filter FORWARD of libvirt drops"},
		},
		{"other hooks", "table ip x { chain o { type filter hook output priority 0; policy drop; }\n}", Host{}, nil},
		{"legacy", "", Host{Legacy: []string{"nat", "filter"}}, []string{"filter of iptables-legacy may drop"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := nstest.New(t)
			if err := nft.Apply(t.Context(), ns, tc.rules); err != nil {
				t.Fatal(err)
			}
			if tc.host.Ruleset, err = nft.List(context.Background(), ns); err != nil {
				t.Fatal(err)
			}
			found := tc.host.Obstacles("lab", "vmnet-")
			if len(found) != len(tc.want) {
				t.Fatalf("%v, want %d", found, len(tc.want))
			}
			for i, o := range found {
				if !strings.HasPrefix(o.String(), tc.want[i]) {
					t.Errorf("%s\nwant %s", o, tc.want[i])
				}
			}
		})
	}
}

// TestLiveRouted: a chain lets a routed guest's traffic pass if it does so in both directions.
func TestLiveRouted(t *testing.T) {
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	const cure = " (nft insert rule ip x F iifname t1 accept; nft insert rule ip x F oifname t1 accept)"
	for rules, want := range map[string]string{
		"":                                     " of the guest to and from the LAN" + cure,
		"iifname t1 accept":                    " from the LAN to the guest" + cure,
		"oifname t1 accept":                    " of the guest to the LAN" + cure,
		"iifname eth0 accept":                  " of the guest to the LAN" + cure,
		"tcp dport 22 accept":                  " of the guest to and from the LAN" + cure,
		"oifname t11 accept":                   " of the guest to and from the LAN" + cure,
		"ct state new counter":                 " of the guest to and from the LAN" + cure,
		"iifname { t1, eth0 } accept":          "",
		"iifname t1 accept; oifname t* accept": "",
		"oifname { t1, eth0 } accept":          "",
		"accept":                               "",
	} {
		ns := nstest.New(t)
		err := nft.Apply(t.Context(), ns, "table ip x { chain F { type filter hook forward priority 0; policy drop; "+
			rules+"; }\nchain I { type filter hook input priority 0; policy drop; }\n}")
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(t.Context(), ns)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, o := range h.Routed("t1", "eth0", "vmnet-") {
			got += strings.TrimPrefix(o.String(), "ip x F of the table x drops IPv4 traffic")
		}
		if got != want {
			t.Errorf("%q: %q, want %q", rules, got, want)
		}
	}
}

// firewalldRules are the part of firewalld's that decides on what is forwarded: eth1 is in a zone
// that accepts, up0 in one by name, and all others are in that by default.
const firewalldRules = `table inet firewalld {
	chain filter_FWD_public_allow { oifname "up0" accept; }
	chain filter_FWD_public { jump filter_FWD_public_allow; reject with icmpx admin-prohibited; }
	chain filter_FWD_vmnet_post { }
	chain filter_FWD_vmnet {
		oifname "up1" meta l4proto tcp reject; jump filter_FWD_vmnet_post; counter accept
	}
	chain filter_FORWARD_ZONES { iifname "eth1" goto filter_FWD_vmnet; goto filter_FWD_public; }
	chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept
		ct state { established, related } accept; jump filter_FORWARD_ZONES; reject with icmpx admin-prohibited
	}
}`

// FuzzObstacles: rules that are not as libnftables-json(5) says are no reason to fail.
func FuzzObstacles(f *testing.F) {
	for _, expr := range []string{
		`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lab"}}, {"accept": null}`,
		`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": {"set": ["a", 1, {}]}}}`,
		`{"match": 1}, {"jump": 2}`, `{"jump": {"target": "FORWARD"}}`, `{"drop": null}`,
	} {
		f.Add(expr)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		r, err := nft.Parse([]byte(`{"nftables": [
			{"chain": {"family": "ip", "table": "x", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
			{"rule": {"family": "ip", "table": "x", "chain": "FORWARD", "expr": [` + expr + `]}}]}`))
		if err != nil {
			return
		}
		h := Host{Ruleset: r}
		for _, o := range append(h.Obstacles("lab", "vmnet-"), h.Routed("t1", "eth0", "vmnet-")...) {
			if o.Owner == "" || o.Cure == "" || o.Effect == "" {
				t.Errorf("%+v", o)
			}
		}
	})
}
