package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/portsec"
	"vmnet/internal/strictyaml"
	"vmnet/macvtap/vtap"
)

// defaultModes are the modes allowed by a rule without modes. Passthru takes the parent device away
// from the host. Source is for users who know which senders the guest should hear.
var defaultModes = []string{"bridge", "vepa", "private", "l2", "l3"}

func allModes() []string {
	return slices.Concat(vtap.Modes(vtap.Macvtap), vtap.Modes(vtap.IPVtap))
}

// ParseIP parses an IP address with or without /BITS, as in ips and --ip. An address with a zone is
// refused, and so is an IPv4-mapped IPv6 address, which no IPv4 prefix contains.
func ParseIP(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, addrErr := netip.ParseAddr(text); addrErr == nil && a.Zone() == "" { // a prefix has no zone
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil || !plainIP(p) {
		return netip.Prefix{}, errors.New("want an IP address such as 192.0.2.7 or 2001:db8::/64")
	}
	return p, nil
}

func plainIP(p netip.Prefix) bool {
	return p.IsValid() && !p.Addr().Is4In6()
}

func (d *decoder) ipRange(n ast.Node) (netip.Prefix, error) {
	text, err := d.Text(n, "an address of ips")
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := ParseIP(text)
	switch {
	case err != nil:
		return p, d.Errorf(strictyaml.TokenOf(n), "ips: %q: %v", text, err)
	case p != p.Masked():
		return p, d.Errorf(strictyaml.TokenOf(n), "ips: %q: bits after the first %d are ignored (write %s)",
			text, p.Bits(), p.Masked())
	}
	return p, nil
}

// validateLower refuses invalid combinations for a macvtap or ipvtap.
func (q *Request) validateLower() error {
	switch {
	case q.Lower == "" && (q.Kind != "" || q.Mode != ""):
		return errors.New("a mode needs a macvtap or ipvtap")
	case q.Routed != "" && len(q.Addrs) == 0:
		return errors.New("packets find a routed guest by its IP address, and none is named")
	case q.Lower == "" && q.Network == "" && q.Routed == "" && len(q.Addrs) > 0 && q.Checks == 0:
		return errors.New("IP addresses need a network, an uplink, an ipvtap or port security")
	case q.Lower == "":
	case q.Kind != vtap.Macvtap && q.Kind != vtap.IPVtap:
		return fmt.Errorf("kind %q: want macvtap or ipvtap", q.Kind)
	case !slices.Contains(vtap.Modes(q.Kind), q.Mode):
		return fmt.Errorf("%s mode %q: want %s", q.Kind, q.Mode, strings.Join(vtap.Modes(q.Kind), ", "))
	case q.Kind == vtap.Macvtap && len(q.Addrs) > 0 && q.Checks == 0:
		return errors.New("a macvtap needs no IP address without port security: only an ipvtap delivers by it")
	case q.Kind == vtap.IPVtap && len(q.Addrs) == 0:
		return errors.New("an ipvtap delivers by IP address, and none is named")
	}
	for _, p := range q.Addrs {
		if !plainIP(p) {
			return fmt.Errorf("IP address %s: IPv4-mapped IPv6 addresses are not allowed", p)
		}
	}
	return nil
}

func (r *rule) checkMode(q *Request) *objection {
	modes, cure := r.modes, fmt.Sprintf("add %s to modes", q.Mode)
	if _, limited := r.lines["modes"]; !limited {
		modes, cure = defaultModes, "write "+withMode(q.Mode)
	}
	if q.Lower == "" || slices.Contains(modes, q.Mode) {
		return nil
	}
	return &objection{"modes", "mode " + q.Mode + notAmong(modes), cure}
}

// withMode returns a line that adds a mode to the default modes.
func withMode(mode string) string {
	return "modes: [" + strings.Join(append(slices.Clone(defaultModes), mode), ", ") + "]"
}

// asked returns what a request for an address means. Of an ipvtap it is the address alone: the
// kernel ignores its prefix for delivery.
func (q *Request) asked(p netip.Prefix) netip.Prefix {
	if q.Kind == vtap.IPVtap {
		return netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
	}
	return p
}

// checkIPs compares the addresses, and the networks from which a guest chooses some. In a network,
// guests may have any address that is free, and port security that a user asks for without need
// compares with any, unless the rule says which.
func (r *rule) checkIPs(q *Request) *objection {
	_, limited := r.lines["ips"]
	isFree := !limited && q.Kind != vtap.IPVtap && q.Routed == ""
	for _, p := range q.Addrs {
		asked := q.asked(p)
		within := func(p netip.Prefix) bool { return p.Bits() <= asked.Bits() && p.Contains(asked.Addr()) }
		if slices.ContainsFunc(r.ips, within) ||
			isFree && (asked.IsSingleIP() || !r.security.Has(portsec.IP)) {
			continue
		}
		a := portsec.FormatIP(asked)
		cure := fmt.Sprintf("add %q to ips", a)
		if len(r.ips) == 0 {
			cure = fmt.Sprintf("write ips: [%q]", a)
		}
		var allowed []string
		for _, p := range r.ips {
			allowed = append(allowed, p.String())
		}
		return &objection{"ips", "IP address " + a + notAmong(allowed), cure}
	}
	return nil
}
