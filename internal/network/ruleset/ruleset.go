// Package ruleset writes the nftables rules of a network, as text for nft(8): one table for each
// network, which nft replaces as a whole, and which users can read and compare.
package ruleset

import (
	"fmt"
	"net/netip"
	"strings"

	"vmnet/internal/network/config"
)

// Families of tables, in the order in which they are written.
const (
	Inet   = "inet"
	Bridge = "bridge" // needed by isolated networks only: an old kernel lacks it
)

// Table returns the name of a network's tables.
func Table(network string) string { return "vmnet-" + network }

// Families returns those in which a network has a table: none on an uplink, where the host is not
// between the guests and the world.
func Families(n *config.Network) []string {
	switch {
	case n.Uplink != nil:
		return nil
	case n.Isolated:
		return []string{Inet, Bridge}
	}
	return []string{Inet}
}

// Replace returns the input of nft -f that makes a network's tables what Text says, in one
// transaction. there are the families in which it has a table now.
func Replace(n *config.Network, there []string) (string, error) {
	text, err := Text(n)
	return Delete(n.Name, there) + text, err
}

// Delete returns the input of nft -f that removes a network's tables in the families there.
func Delete(network string, there []string) string {
	var b strings.Builder
	for _, family := range there {
		// A table that somebody removed meanwhile is no error: the first line makes it.
		fmt.Fprintf(&b, "table %s %[2]s\ndelete table %[1]s %[2]s\n", family, Table(network))
	}
	return b.String()
}

// Text returns a network's tables. nft 1.0.6 takes neither chains named "fwd" nor names of
// priorities at the hook output.
func Text(n *config.Network) (string, error) {
	if n.Uplink != nil {
		return "", nil
	}
	w := &writer{br: fmt.Sprintf("%q", n.Name)}
	w.line(0, "table inet %s {", Table(n.Name))
	forwards, err := forwardRules(n)
	if err != nil {
		return "", err
	}
	w.chain("forwards", "", forwards...)
	w.chain("prerouting", "type nat hook prerouting priority dstnat; policy accept;", "jump forwards")
	w.chain("output", "type nat hook output priority -100; policy accept;", "jump forwards")
	w.chain("postrouting", "type nat hook postrouting priority srcnat; policy accept;", w.masquerade(n)...)
	w.chain("forward", "type filter hook forward priority filter; policy accept;", w.forward(n)...)
	w.line(0, "}")
	if n.Isolated {
		w.line(0, "table bridge %s {", Table(n.Name))
		w.chain("forward", "type filter hook forward priority 0; policy accept;", fmt.Sprintf(
			`meta ibrname %s iifname != %q oifname != %[2]q drop`, w.br, n.ServerLink()))
		w.line(0, "}")
	}
	return w.b.String(), nil
}

// writer writes tables. br is the bridge's name in quotes.
type writer struct {
	b  strings.Builder
	br string
}

func (w *writer) line(indent int, format string, args ...any) {
	w.b.WriteString(strings.Repeat("\t", indent))
	fmt.Fprintf(&w.b, format+"\n", args...)
}

func (w *writer) chain(name, head string, rules ...string) {
	w.line(1, "chain %s {", name)
	if head != "" {
		w.line(2, "%s", head)
	}
	for _, r := range rules {
		w.line(2, "%s", r)
	}
	w.line(1, "}")
}

// forwardRules are for what arrives at the host, or is sent by it, to addresses of its own. What
// the host sends to 127.0.0.1 stays there: the kernel does not route from such addresses.
func forwardRules(n *config.Network) ([]string, error) {
	if len(n.Forwards) == 0 {
		return nil, nil
	}
	rules := []string{"ip daddr 127.0.0.0/8 return", "ip6 daddr ::1 return"}
	for _, f := range n.Forwards {
		target, err := n.Target(f)
		if err != nil {
			return nil, err
		}
		rules = append(rules, forwardRule(f, target))
	}
	return rules, nil
}

func forwardRule(f config.Forward, target netip.Addr) string {
	family, proto := "ip", "ipv4"
	if target.Is6() {
		family, proto = "ip6", "ipv6"
	}
	to := target.String()
	if f.Port != 0 {
		to = netip.AddrPortFrom(target, f.Port).String()
	}
	daddr := fmt.Sprintf("meta nfproto %s fib daddr type local", proto)
	if f.Listen.IsValid() {
		daddr = fmt.Sprintf("%s daddr %s", family, f.Listen)
	}
	ports := fmt.Sprint(f.First)
	if f.Last != f.First {
		ports = fmt.Sprintf("%d-%d", f.First, f.Last)
	}
	return fmt.Sprintf("%s %s dport %s dnat %s to %s", daddr, f.Protocol, ports, family, to)
}

// masquerade gives what leaves the network an address of the host, and what a forward leads back
// into it (from a guest to a guest, or from the host) one that the answers come back by.
func (w *writer) masquerade(n *config.Network) (rules []string) {
	if n.NAT {
		for _, p := range n.Prefixes() {
			family := familyOf(p)
			rules = append(rules, fmt.Sprintf("%s saddr %s %[1]s daddr != %[2]s oifname != %[3]s masquerade",
				family, p, w.br))
		}
	}
	if len(n.Forwards) == 0 {
		return rules
	}
	for _, p := range n.Prefixes() {
		// Not by the interface that it came in by: with br_netfilter there is none here.
		rules = append(rules, fmt.Sprintf("oifname %s %s saddr %s ct status dnat masquerade", w.br, familyOf(p), p))
	}
	return append(rules, fmt.Sprintf("oifname %s fib saddr type local ct status dnat masquerade", w.br))
}

// forward drops what nobody in the network has asked for, and what guests send with addresses that
// are not of the network.
func (w *writer) forward(n *config.Network) (rules []string) {
	add := func(format string) { rules = append(rules, strings.ReplaceAll(format, "BR", w.br)) }
	if n.Isolated {
		// What guests have the host send to each other. With br_netfilter, what they exchange with
		// the server comes here too.
		add(fmt.Sprintf("iifname BR oifname BR ip saddr != { 0.0.0.0, %s } ip daddr != { %[1]s, 255.255.255.255 } drop",
			n.Server().Addr()))
	}
	if n.Isolated && n.IPv6.IsValid() {
		add(
			fmt.Sprintf(
				"iifname BR oifname BR ip6 saddr != { %s, fe80::/10 } ip6 daddr != { %[1]s, fe80::/10, ff00::/8 } drop",
				n.Server6().Addr(),
			),
		)
	}
	add("iifname BR oifname != BR ip saddr != " + n.Subnet.String() + " drop")
	if n.IPv6.IsValid() {
		add("iifname BR oifname != BR ip6 saddr != " + n.IPv6.String() + " drop")
	} else {
		add("iifname BR oifname != BR meta nfproto ipv6 drop")
	}
	if !n.NAT {
		add("iifname BR oifname != BR ct status dnat accept")
		add("iifname BR oifname != BR drop")
	}
	add("oifname BR iifname != BR ct state established,related accept")
	add("oifname BR iifname != BR ct status dnat accept")
	add("oifname BR iifname != BR drop")
	return rules
}

func familyOf(p netip.Prefix) string {
	if p.Addr().Is6() {
		return "ip6"
	}
	return "ip"
}
