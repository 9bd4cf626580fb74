package nft

import (
	"fmt"
	"strings"
	"testing"

	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// TestLiveTranslate: rules of the real iptables, of whose matches JSON has the names only.
func TestLiveTranslate(t *testing.T) {
	ns := nstest.New(t)
	_, err := tool.Find("iptables-nft", "iptables")
	nstest.Require(t, "iptables", err == nil, "apt install iptables")
	for _, rule := range []struct {
		program, args, want string
	}{
		{
			"iptables", "-m conntrack --ctstate RELATED,ESTABLISHED",
			`== {"ct": {"key": "state"}} ["related","established"]`,
		},
		{"iptables", "-m conntrack ! --ctstate INVALID", `!= {"ct": {"key": "state"}} ["invalid"]`},
		{
			"iptables", "-p icmp -m icmp --icmp-type echo-request",
			`== {"payload": {"protocol": "icmp", "field": "type"}} ["echo-request"]`,
		},
		{
			"ip6tables", "-p icmpv6 -m icmp6 --icmpv6-type echo-request",
			`== {"payload": {"protocol": "icmpv6", "field": "type"}} ["echo-request"]`,
		},
		{
			"iptables", "-m addrtype --dst-type LOCAL",
			`== {"fib": {"result": "type", "flags": ["daddr"]}} ["local"]`,
		},
		{"iptables", "-m conntrack --ctstate NEW --ctdir ORIGINAL", "xt conntrack"},
		{"iptables", "-m conntrack --ctstate NEW -m addrtype --dst-type LOCAL", "xt conntrack xt addrtype"},
		{"iptables", "-m addrtype --src-type LOCAL", "xt addrtype"},
	} {
		run := func(args string) {
			t.Helper()
			if _, err := tool.Run(t.Context(), ns, "", strings.Fields(rule.program+"-nft "+args)...); err != nil {
				t.Fatal(err)
			}
		}
		run("-F FORWARD")
		run("-A FORWARD " + rule.args + " -j ACCEPT")
		r, err := List(t.Context(), ns)
		if err == nil {
			err = Translate(t.Context(), ns, r)
		}
		if err != nil {
			t.Fatal(err)
		}
		family := map[string]string{"iptables": "ip", "ip6tables": "ip6"}[rule.program]
		if got := matchesOf(t, r.Chain(TableID{family, "filter"}, "FORWARD").Rules[0]); got != rule.want {
			t.Errorf("%s: %q, want %q", rule.args, got, rule.want)
		}
	}
}

// matchesOf returns the matches of a rule but for that of the transport.
func matchesOf(t *testing.T, rule Rule) string {
	t.Helper()
	var all []string
	for _, expr := range rule {
		text := string(expr["match"])
		if m, found := strings.CutPrefix(text, `{"op": "`); found && !strings.Contains(text, "l4proto") {
			op, rest, _ := strings.Cut(m, `", "left": `)
			left, right, _ := strings.Cut(strings.TrimSuffix(rest, "}"), `, "right": `)
			all = append(all, fmt.Sprintf("%s %s %s", op, left, right))
		}
		if name, found := strings.CutPrefix(string(expr["xt"]), `{"type": "match", "name": "`); found {
			all = append(all, "xt "+strings.TrimSuffix(name, `"}`))
		}
	}
	return strings.Join(all, " ")
}

// TestRulesOf: only the lines of rules count, and a chain that was changed since is left alone.
func TestRulesOf(t *testing.T) {
	found := rulesOf("table ip x {\n\tchain A {\n" +
		"\t\ttype filter hook forward priority 0; policy drop;\n\t\taccept\n\t}\n" +
		"\n\tset s {\n\t\ttype ipv4_addr\n\t}\n\n\tchain B {\n\t}\n}\n")
	if fmt.Sprint(found) != "map[A:[accept] B:[]]" {
		t.Errorf("%v", found)
	}
	c := &Chain{Rules: []Rule{{{"xt": []byte(`{"type": "match", "name": "conntrack"}`)}}}}
	if c.translate([]string{"ct state new", "drop"}); c.Rules[0].xt() != "conntrack" {
		t.Error("it was changed")
	}
}
