// Package inbound describes what may reach a guest that has not asked for it, as data. Answers to
// what the guest has asked always reach it, and so do ARP, neighbor discovery, router
// advertisements, the answers of DHCP servers, and queries of multicast groups. A BPF program
// (internal/kernel/bpfguard) checks the frames at the guest's host interface.
package inbound

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/portsec"
)

// Protocol is what a Rule allows.
type Protocol string

// The protocols. Those with ports need them.
const (
	TCP     Protocol = "tcp"
	UDP     Protocol = "udp"
	ICMP    Protocol = "icmp"    // echo requests, of IPv4 and IPv6
	Any     Protocol = "any"     // all of IPv4 and IPv6
	Answers Protocol = "answers" // nothing: a NIC with this Rule gets answers only
)

// A Rule lets frames in that answer nothing.
type Rule struct {
	Protocol Protocol

	// First and Last are the guest's ports, both included; 0 for a protocol without ports.
	First, Last uint16

	// From is the network of the senders; its zero value is all of IPv4 and IPv6.
	From netip.Prefix
}

// MaxRules is how many rules a NIC has at most.
const MaxRules = 16

// fromWord precedes the senders of a rule, and shortFrom does in an alias.
const fromWord, shortFrom = ",from=", "@"

// ParseRule parses a rule such as "tcp:22", "udp:5000-5010,from=10.0.0.0/8", "icmp",
// "any,from=2001:db8::/64" and "answers".
func ParseRule(text string) (r Rule, err error) {
	what, from, hasFrom := strings.Cut(text, fromWord)
	protocol, ports, hasPorts := strings.Cut(what, ":")
	r.Protocol = Protocol(protocol)
	if hasFrom {
		if r.From, err = parseFrom(from); err != nil {
			return Rule{}, err
		}
	}
	if hasPorts {
		first, last, isRange := strings.Cut(ports, "-")
		if r.First, err = parsePort(first); err != nil {
			return Rule{}, err
		}
		r.Last = r.First
		if isRange {
			if r.Last, err = parsePort(last); err != nil {
				return Rule{}, err
			}
		}
	}
	return r, r.validate()
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '0' || text[0] == '+' {
		return 0, fmt.Errorf("port %q: want 1 to %d, or a range such as 8000-8010", text, math.MaxUint16)
	}
	return uint16(n), nil
}

// parseFrom parses a network, or an address, which is the network of one host.
func parseFrom(text string) (netip.Prefix, error) {
	a, err := netip.ParseAddr(text)
	p := netip.PrefixFrom(a, a.BitLen())
	if err != nil {
		p, err = netip.ParsePrefix(text)
	}
	switch {
	case err != nil || a.Zone() != "" || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("from=%s: want a network such as 10.0.0.0/8, or an address", text)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("from=%s: bits after the first %d are set (write %s)", text, p.Bits(),
			p.Masked())
	}
	return p, nil
}

func (r Rule) validate() error {
	switch {
	case !slices.Contains([]Protocol{TCP, UDP, ICMP, Any, Answers}, r.Protocol):
		return fmt.Errorf("rule for %q: want tcp:PORT, udp:PORT, icmp, any or answers, and ,from=NETWORK", r.Protocol)
	case r.hasPorts() && r.First == 0:
		return fmt.Errorf("rule for %s: want its ports (%[1]s:22, %[1]s:8000-8010, %[1]s:1-65535)", r.Protocol)
	case !r.hasPorts() && (r.First != 0 || r.Last != 0):
		return fmt.Errorf("rule for %s: it has no ports (leave them out)", r.Protocol)
	case r.Last < r.First:
		return fmt.Errorf("ports %d-%d: want the lower number first", r.First, r.Last)
	case r.Protocol == Answers && r.From.IsValid():
		return errors.New("answers come from the hosts that the guest has asked (write answers, without from=)")
	}
	return nil
}

func (r Rule) hasPorts() bool { return r.Protocol == TCP || r.Protocol == UDP }

// String returns the rule as ParseRule takes it.
func (r Rule) String() string {
	text := string(r.Protocol)
	if r.First != 0 {
		text += ":" + strconv.Itoa(int(r.First))
	}
	if r.Last != r.First {
		text += "-" + strconv.Itoa(int(r.Last))
	}
	switch {
	case !r.From.IsValid():
	case r.From.IsSingleIP():
		text += fromWord + r.From.Addr().String()
	default:
		text += fromWord + r.From.String()
	}
	return text
}

// MarshalText returns the rule as String does.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses the rule as ParseRule does.
func (r *Rule) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRule(string(b))
	return err
}

// Covers reports whether all that other allows, r allows too.
func (r Rule) Covers(other Rule) bool {
	if other.Protocol == Answers {
		return true
	}
	senders := !r.From.IsValid() || other.From.IsValid() && r.From.Bits() <= other.From.Bits() &&
		r.From.Contains(other.From.Addr())
	frames := r.Protocol == other.Protocol && r.First <= other.First && other.Last <= r.Last
	return senders && (frames || r.Protocol == Any)
}

// Rules say what reaches the guest of a NIC besides answers. Without a rule everything does, as if
// no frame were checked; Answers alone is a rule, too.
type Rules []Rule

// IsZero reports whether no frame is checked.
func (rules Rules) IsZero() bool { return len(rules) == 0 }

// Validate checks the rules and their number.
func (rules Rules) Validate() error {
	if len(rules) > MaxRules {
		return fmt.Errorf("%d rules of what may come in: at most %d", len(rules), MaxRules)
	}
	for i, r := range rules {
		if err := r.validate(); err != nil {
			return err
		}
		switch {
		case slices.Contains(rules[:i], r):
			return fmt.Errorf("rule %s is given twice", r)
		case r.Protocol == Answers && len(rules) > 1:
			return errors.New("answers always come in (leave the word answers out beside other rules)")
		}
	}
	return nil
}

// Sorted returns the rules in a canonical order: their own has no meaning.
func (rules Rules) Sorted() Rules {
	byText := func(a, b Rule) int { return strings.Compare(a.String(), b.String()) }
	return slices.SortedFunc(slices.Values(rules), byText)
}

// Equal reports whether both let the same in.
func (rules Rules) Equal(other Rules) bool { return slices.Equal(rules.Sorted(), other.Sorted()) }

// separator is between rules as text.
const separator = ";"

// String returns the rules as text, such as "tcp:22,from=10.0.0.0/8;tcp:80", sorted; empty for
// none.
func (rules Rules) String() string {
	var texts []string
	for _, r := range rules.Sorted() {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, separator)
}

// Encode writes the rules' part of an alias.
func (rules Rules) Encode(add func(key, value string)) {
	add("in", strings.ReplaceAll(rules.String(), fromWord, shortFrom))
}

// Set sets one field of an alias, and reports whether Encode writes such a value. It ignores a key
// that is not the rules'.
func (rules *Rules) Set(key, value string) bool {
	if key != "in" {
		return true
	}
	*rules = nil
	for part := range strings.SplitSeq(strings.ReplaceAll(value, shortFrom, fromWord), separator) {
		r, err := ParseRule(part)
		if err != nil {
			return false
		}
		*rules = append(*rules, r)
	}
	return rules.Validate() == nil
}

// Refused is the label of the counter of dropped frames.
const Refused = "neither an answer nor allowed in"

// Config is what the kernel lets in to a guest. Its zero value is everything.
type Config struct {
	Rules      Rules
	EtherTypes []portsec.EtherType // of frames besides IPv4, IPv6, ARP and RARP, that pass
}

// IsZero reports whether all frames reach the guest.
func (c Config) IsZero() bool { return c.Rules.IsZero() }

// Validate checks the bounds.
func (c Config) Validate() error {
	if len(c.EtherTypes) > portsec.MaxEtherTypes {
		return fmt.Errorf("%d EtherTypes: at most %d", len(c.EtherTypes), portsec.MaxEtherTypes)
	}
	return c.Rules.Validate()
}

// Equal reports whether both let the same frames in.
func (c Config) Equal(other Config) bool { return c.String() == other.String() }

// String returns it as text: the rules, and the EtherTypes beside them; "all" if all frames reach
// the guest.
func (c Config) String() string {
	text := c.Rules.String()
	switch {
	case c.IsZero():
		return "all"
	case len(c.EtherTypes) > 0:
		text += ";type:" + portsec.FormatEtherTypes(c.EtherTypes)
	}
	return text
}
