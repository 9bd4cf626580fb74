package firewall

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Packet is what the rules of chains look at: the first packet of a connection.
type Packet struct {
	Protocol  string // "ip", "ip6" or "arp"
	Transport string // "tcp", "udp", "icmp", "ipv6-icmp"; empty for none
	Src, Dst  netip.Addr
	SrcPort   uint16
	DstPort   uint16
	SrcMAC    string // in lower case
	DstMAC    string
	ToHost    bool // Dst is an address of the host

	In, Out             string // links, as the hook sees them
	InBridge, OutBridge string // bridges of which they are ports
}

// answer is whether something holds for a packet; maybe, if its rule looks at what is not known.
type answer int

const (
	no answer = iota
	maybe
	yes
)

func is(holds bool) answer {
	if holds {
		return yes
	}
	return no
}

// matches reports whether a packet has what a match of a rule asks for (libnftables-json(5),
// MATCH).
func (p *Packet) matches(raw json.RawMessage) answer {
	var m struct {
		Op    string          `json:"op"`
		Left  json.RawMessage `json:"left"`
		Right json.RawMessage `json:"right"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return maybe
	}
	value, known := p.field(m.Left)
	if known != yes {
		return known
	}
	equal := p.equals(value, m.Right)
	switch {
	case equal == maybe:
		return maybe
	case m.Op == "==" || m.Op == "in":
		return equal
	case m.Op == "!=":
		return yes - equal
	}
	return maybe // an order
}

// field returns what the left side of a match stands for. It is no if the packet has no such
// header.
func (p *Packet) field(raw json.RawMessage) (string, answer) {
	var left struct {
		Meta    *struct{ Key string }
		CT      *struct{ Key string }
		Payload *struct{ Protocol, Field string }
		FIB     *struct {
			Result string
			Flags  []string
		}
	}
	if json.Unmarshal(raw, &left) != nil {
		return "", maybe
	}
	switch {
	case left.Meta != nil:
		return p.meta(left.Meta.Key)
	case left.CT != nil && left.CT.Key == "state":
		return "new", yes
	case left.CT != nil && left.CT.Key == "status":
		return "", no // neither answered nor translated yet
	case left.Payload != nil:
		return p.payload(left.Payload.Protocol, left.Payload.Field)
	case left.FIB != nil && left.FIB.Result == "type" && slices.Equal(left.FIB.Flags, []string{"daddr"}):
		return p.addressType()
	}
	return "", maybe
}

// addressType is the kind of the packet's destination (nft(8), FIB EXPRESSIONS), but for the
// broadcast addresses of subnets.
func (p *Packet) addressType() (string, answer) {
	switch a := p.Dst; {
	case p.ToHost:
		return "local", yes
	case !a.IsValid():
		return "", maybe
	case a.IsMulticast():
		return "multicast", yes
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "broadcast", yes
	}
	return "unicast", yes
}

func (p *Packet) meta(key string) (string, answer) {
	families := map[string]string{"ip": "ipv4", "ip6": "ipv6"}
	switch key {
	case "iifname", "iif":
		return p.In, yes
	case "oifname", "oif":
		return p.Out, yes
	case "ibrname", "ibriport":
		return p.InBridge, yes
	case "obrname", "obriport":
		return p.OutBridge, yes
	case "protocol":
		return p.Protocol, yes
	case "nfproto":
		return families[p.Protocol], yes
	case "l4proto":
		return p.Transport, yes
	}
	return "", maybe
}

// payload returns a field of a header.
func (p *Packet) payload(protocol, field string) (string, answer) {
	found := func(value string, has bool) (string, answer) {
		switch {
		case !has:
			return "", no
		case value == "":
			return "", maybe
		}
		return value, yes
	}
	address := func(a netip.Addr) string {
		if a.IsValid() {
			return a.String()
		}
		return ""
	}
	port := map[string]uint16{"sport": p.SrcPort, "dport": p.DstPort}
	switch protocol {
	case "ether":
		return found(map[string]string{"saddr": p.SrcMAC, "daddr": p.DstMAC, "type": p.Protocol}[field], true)
	case "ip", "ip6":
		transport := p.Transport
		if transport == "" {
			transport = "none"
		}
		value := map[string]string{
			"saddr": address(p.Src), "daddr": address(p.Dst), "protocol": transport, "nexthdr": transport,
		}[field]
		return found(value, p.Protocol == protocol)
	case "tcp", "udp", "th":
		n, is := port[field]
		has := protocol == p.Transport || protocol == "th" && (p.Transport == "tcp" || p.Transport == "udp")
		if !is || n == 0 {
			return found("", has)
		}
		return found(strconv.Itoa(int(n)), has)
	case "icmp", "icmpv6":
		value := map[string]string{"type": "echo-request", "code": "0"}[field]
		return found(value, p.Transport == map[string]string{"icmp": "icmp", "icmpv6": "ipv6-icmp"}[protocol])
	case "arp":
		return found(map[string]string{"operation": "request", "ptype": "0x800"}[field], p.Protocol == "arp")
	case "vlan":
		return "", no
	}
	return "", maybe
}

// equals compares a value with the right side of a match: a word or number, a prefix, a range, or
// several of them.
func (p *Packet) equals(value string, raw json.RawMessage) answer {
	var several []json.RawMessage
	var right struct {
		Set    []json.RawMessage
		Prefix *struct {
			Addr string
			Len  int
		}
		Range []json.RawMessage
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		if json.Unmarshal(raw, &several) != nil {
			return maybe
		}
		return p.equalsAny(value, several)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		word := strings.Trim(string(raw), `"`)
		if strings.HasPrefix(word, "@") {
			return maybe // a named set
		}
		return is(matchesName(word, value) || strings.EqualFold(word, value) || protocols[value] == word)
	}
	switch json.Unmarshal(raw, &right) {
	default:
		return maybe
	case nil:
	}
	switch {
	case right.Set != nil:
		return p.equalsAny(value, right.Set)
	case right.Prefix != nil:
		network, err := netip.ParsePrefix(right.Prefix.Addr + "/" + strconv.Itoa(right.Prefix.Len))
		a, addrErr := netip.ParseAddr(value)
		if err != nil || addrErr != nil {
			return maybe
		}
		return is(network.Contains(a))
	case len(right.Range) == 2:
		return between(value, right.Range)
	}
	return maybe
}

// protocols are the numbers of transports, by which rules may name them.
var protocols = map[string]string{"icmp": "1", "tcp": "6", "udp": "17", "ipv6-icmp": "58"}

func (p *Packet) equalsAny(value string, all []json.RawMessage) answer {
	best := no
	for _, raw := range all {
		best = max(best, p.equals(value, raw))
	}
	return best
}

func between(value string, ends []json.RawMessage) answer {
	at, err := strconv.Atoi(value)
	first, firstErr := strconv.Atoi(string(ends[0]))
	last, lastErr := strconv.Atoi(string(ends[1]))
	if err == nil && firstErr == nil && lastErr == nil {
		return is(at >= first && at <= last)
	}
	a, err := netip.ParseAddr(value)
	low, lowErr := netip.ParseAddr(strings.Trim(string(ends[0]), `"`))
	high, highErr := netip.ParseAddr(strings.Trim(string(ends[1]), `"`))
	if err != nil || lowErr != nil || highErr != nil {
		return maybe
	}
	return is(a.Compare(low) >= 0 && a.Compare(high) <= 0)
}

// asksFor returns the answer of the rule's conditions together, and its last expression.
func (p *Packet) asksFor(rule []map[string]json.RawMessage) (holds answer, verdict string, value json.RawMessage) {
	holds = yes
	for _, expr := range rule {
		for kind, raw := range expr {
			switch {
			case kind == "match":
				holds = min(holds, p.matches(raw))
			case slices.Contains(verdicts, kind):
				verdict, value = kind, raw
			case !slices.Contains(harmless, kind) && !logs(kind, raw):
				holds = min(holds, maybe)
			}
		}
	}
	return holds, verdict, value
}

// logs reports whether an expression is the target LOG of iptables.
func logs(kind string, raw json.RawMessage) bool {
	var xt struct{ Type, Name string }
	return kind == "xt" && json.Unmarshal(raw, &xt) == nil && xt.Type == "target" &&
		slices.Contains([]string{"LOG", "NFLOG"}, xt.Name)
}

// verdicts end a rule; harmless expressions decide nothing.
var (
	verdicts = []string{
		"accept", "drop", "reject", "jump", "goto", "return", "continue", "queue", "vmap",
		"masquerade", "snat", "dnat", "redirect",
	}
	harmless = []string{"counter", "log", "comment", "mangle", "notrack", "ct helper"}
)
