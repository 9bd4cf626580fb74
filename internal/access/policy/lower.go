package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/macvtap"
)

// defaultModes may be asked for where no rule says. Passthru takes the network card from the
// host; source is for whoever knows whom the guest is to hear.
var defaultModes = []string{"bridge", "vepa", "private", "l2", "l3"}

func allModes() []string {
	return slices.Concat(macvtap.Modes(macvtap.Macvtap), macvtap.Modes(macvtap.IPVtap))
}

// ParseIP reads an IP address with or without /BITS, as ips and --ip have it. One with a zone is
// refused, and an IPv4 address within IPv6, which no prefix of IPv4 contains.
func ParseIP(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, addrErr := netip.ParseAddr(text); addrErr == nil && a.Zone() == "" { // which a prefix has none of
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

func (d *document) ipRange(n ast.Node) (netip.Prefix, error) {
	text, err := d.text(n, "an address of ips")
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := ParseIP(text)
	switch {
	case err != nil:
		return p, d.errorf(tokenOf(n), "ips: %q: %v", text, err)
	case p != p.Masked():
		return p, d.errorf(tokenOf(n), "ips: %q: bits behind the first %d do not count (write %s)", text, p.Bits(), p.Masked())
	}
	return p, nil
}

// validateLower refuses what no macvtap or ipvtap can be.
func (q *Request) validateLower() error {
	switch {
	case q.Lower == "" && (q.Kind != "" || q.Mode != "" || len(q.Addrs) > 0):
		return errors.New("mode and IP addresses go with a macvtap or ipvtap")
	case q.Lower == "":
		return nil
	case q.Kind != macvtap.Macvtap && q.Kind != macvtap.IPVtap:
		return fmt.Errorf("kind %q: want macvtap or ipvtap", q.Kind)
	case !slices.Contains(macvtap.Modes(q.Kind), q.Mode):
		return fmt.Errorf("%s mode %q: want %s", q.Kind, q.Mode, strings.Join(macvtap.Modes(q.Kind), ", "))
	case q.Kind == macvtap.Macvtap && len(q.Addrs) > 0:
		return errors.New("a macvtap needs no IP address: only an ipvtap delivers by it")
	case q.Kind == macvtap.IPVtap && len(q.Addrs) == 0:
		return errors.New("an ipvtap delivers by IP address, and none is named")
	}
	for _, p := range q.Addrs {
		if !plainIP(p) {
			return fmt.Errorf("IP address %s: want an address of IPv4, or one of IPv6 that is none of IPv4", p)
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

// withMode is a line that adds a mode to those which may be asked for anyway.
func withMode(mode string) string {
	return "modes: [" + strings.Join(append(slices.Clone(defaultModes), mode), ", ") + "]"
}

// checkIPs compares addresses alone: the kernel does not deliver by their prefixes.
func (r *rule) checkIPs(q *Request) *objection {
	for _, asked := range q.Addrs {
		a := asked.Addr()
		if slices.ContainsFunc(r.ips, func(p netip.Prefix) bool { return p.Contains(a) }) {
			continue
		}
		cure := fmt.Sprintf("add %q to ips", a)
		if len(r.ips) == 0 {
			cure = fmt.Sprintf("write ips: [%q]", a)
		}
		var allowed []string
		for _, p := range r.ips {
			allowed = append(allowed, p.String())
		}
		return &objection{"ips", "IP address " + a.String() + notAmong(allowed), cure}
	}
	return nil
}
