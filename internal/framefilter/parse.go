package framefilter

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Words are those with which a part of an expression begins.
var Words = []string{
	"arp", "ip", "ip6", "icmp", "icmp6", "tcp", "udp", "sctp", "dhcp", "dns", "broadcast", "multicast", "vlan", "host",
	"net", "port", "ether", "src", "dst", "not", "and", "or",
}

// Bounds of an expression.
const (
	maxText  = 4096 // bytes
	maxDepth = 64   // of parentheses and nots
)

// Parse parses an expression; an empty one selects all frames. Parts are joined by "and", "or" and
// "not", and parentheses: arp, ip, ip6, icmp, icmp6, tcp, udp, sctp, dhcp, dns, broadcast,
// multicast, "vlan [ID]", "[src|dst] host ADDRESS", "[src|dst] net CIDR", "[src|dst] port NUMBER",
// "ether [src|dst] host MAC". As in pcap-filter(7), "and" may be left out, and binds more closely
// than "or".
func Parse(text string) (Filter, error) {
	if len(text) > maxText {
		return Filter{}, fmt.Errorf("filter: more than %d bytes", maxText)
	}
	text = strings.NewReplacer("(", " ( ", ")", " ) ", "!", " not ", "&&", " and ", "||", " or ").Replace(text)
	p := parser{words: strings.Fields(text)}
	if len(p.words) == 0 {
		return Filter{}, nil
	}
	match, err := p.or(0)
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("unexpected %q", p.words[0])
	}
	if err != nil {
		return Filter{}, fmt.Errorf("filter: %w", err)
	}
	return Filter{match}, nil
}

type parser struct{ words []string }

type matcher = func(*packet) bool

func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

// take returns the next word, or the empty string.
func (p *parser) take() string {
	w := p.peek()
	p.words = p.words[min(1, len(p.words)):]
	return w
}

func (p *parser) skip(word string) bool {
	if p.peek() != word {
		return false
	}
	p.take()
	return true
}

func (p *parser) or(depth int) (matcher, error) {
	left, err := p.and(depth)
	for err == nil && p.skip("or") {
		var right matcher
		former := left
		right, err = p.and(depth)
		left = func(f *packet) bool { return former(f) || right(f) }
	}
	return left, err
}

func (p *parser) and(depth int) (matcher, error) {
	left, err := p.not(depth)
	for err == nil && (p.skip("and") || p.peek() != "" && p.peek() != "or" && p.peek() != ")") {
		var right matcher
		former := left
		right, err = p.not(depth)
		left = func(f *packet) bool { return former(f) && right(f) }
	}
	return left, err
}

func (p *parser) not(depth int) (matcher, error) {
	if depth > maxDepth {
		return nil, errors.New("too many parentheses")
	}
	switch {
	case p.skip("not"):
		m, err := p.not(depth + 1)
		return func(f *packet) bool { return !m(f) }, err
	case p.skip("("):
		m, err := p.or(depth + 1)
		if err == nil && !p.skip(")") {
			err = errors.New("a ) is missing")
		}
		return m, err
	}
	return p.primitive()
}

// simple are the parts of one word.
var simple = map[string]matcher{
	"arp":       func(f *packet) bool { return f.etherType == typeARP },
	"ip":        func(f *packet) bool { return f.etherType == typeIPv4 },
	"ip6":       func(f *packet) bool { return f.etherType == typeIPv6 },
	"icmp":      func(f *packet) bool { return f.etherType == typeIPv4 && f.proto == protoICMP },
	"icmp6":     func(f *packet) bool { return f.etherType == typeIPv6 && f.proto == protoICMPv6 },
	"tcp":       func(f *packet) bool { return f.proto == protoTCP },
	"udp":       func(f *packet) bool { return f.proto == protoUDP },
	"sctp":      func(f *packet) bool { return f.proto == protoSCTP },
	"broadcast": (*packet).isBroadcast,
	"multicast": (*packet).isMulticast,
	"dhcp": func(f *packet) bool {
		return f.proto == protoUDP && (f.hasPort(67) || f.hasPort(68) || f.hasPort(546) || f.hasPort(547))
	},
	"dns": func(f *packet) bool { return f.hasPort(53) },
}

func (p *packet) hasPort(n uint16) bool { return p.ports && (p.sport == n || p.dport == n) }

// ends says which end of a frame has to match.
type ends struct{ src, dst bool }

func (p *parser) primitive() (matcher, error) {
	word := p.take()
	if m := simple[word]; m != nil {
		return m, nil
	}
	which := ends{true, true}
	if word == "src" || word == "dst" {
		which = ends{word == "src", word == "dst"}
		word = p.take()
	}
	switch word {
	case "ether":
		if next := p.peek(); next == "src" || next == "dst" {
			which = ends{next == "src", next == "dst"}
			p.take()
		}
		p.skip("host")
		return p.ether(which)
	case "vlan":
		return p.vlan()
	case "host":
		a, err := netip.ParseAddr(p.take())
		if err != nil {
			return nil, errors.New("host: want an IP address")
		}
		return which.addr(func(ip netip.Addr) bool { return ip == a }), nil
	case "net":
		n, err := netip.ParsePrefix(p.take())
		if err != nil {
			return nil, errors.New("net: want a network such as 10.0.0.0/24")
		}
		return which.addr(n.Masked().Contains), nil
	case "port":
		n, err := strconv.ParseUint(p.take(), 10, 16)
		if err != nil {
			return nil, errors.New("port: want a number of at most 65535")
		}
		return func(f *packet) bool {
			return f.ports && (which.src && f.sport == uint16(n) || which.dst && f.dport == uint16(n))
		}, nil
	case "":
		return nil, errors.New("the expression ends too early")
	}
	return nil, fmt.Errorf("unknown word %q (known: %s)", word, strings.Join(Words, ", "))
}

func (w ends) addr(is func(netip.Addr) bool) matcher {
	return func(f *packet) bool {
		return w.src && f.srcIP.IsValid() && is(f.srcIP) || w.dst && f.dstIP.IsValid() && is(f.dstIP)
	}
}

func (p *parser) ether(which ends) (matcher, error) {
	mac, err := net.ParseMAC(p.take())
	if err != nil || len(mac) != 6 {
		return nil, errors.New("ether host: want a MAC such as 52:54:00:00:00:01")
	}
	return func(f *packet) bool {
		return which.src && bytes.Equal(f.src, mac) || which.dst && bytes.Equal(f.dst, mac)
	}, nil
}

func (p *parser) vlan() (matcher, error) {
	id, err := strconv.ParseUint(p.peek(), 10, 12)
	if err != nil {
		if p.peek() != "" && p.peek()[0] >= '0' && p.peek()[0] <= '9' {
			return nil, errors.New("vlan: want an ID of at most 4095")
		}
		return func(f *packet) bool { return len(f.vlans) > 0 }, nil
	}
	p.take()
	return func(f *packet) bool { return len(f.vlans) > 0 && f.vlans[0] == uint16(id) }, nil
}
