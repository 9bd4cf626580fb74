package portsec

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Settings say which of a guest's frames are dropped. The frames are compared with the NIC's MAC
// address and with the guest's own IP addresses.
type Settings struct {
	Checks     Checks         `json:"checks"`
	EtherTypes []EtherType    `json:"ethertypes,omitempty"` // further ones that pass
	Nets       []netip.Prefix `json:"nets,omitempty"`       // from which the guest chooses further addresses
}

// MaxNets is how many networks Settings have at most: the alias has room for few.
const MaxNets = 8

// IsZero reports whether nothing is checked.
func (s Settings) IsZero() bool { return s.Checks == 0 }

// String returns the settings as text, such as "all;type:0x88f7", sorted; "none" if nothing is
// checked.
func (s Settings) String() string {
	words := []string{s.Checks.String()}
	if len(s.EtherTypes) > 0 {
		words = append(words, "type:"+FormatEtherTypes(s.EtherTypes))
	}
	if len(s.Nets) > 0 {
		words = append(words, "net:"+FormatNets(s.Nets))
	}
	return strings.Join(words, ";")
}

// Config returns the configuration that checks the frames of a NIC with those addresses, its lists
// sorted.
func (s Settings) Config(mac net.HardwareAddr, ips []netip.Addr) Config {
	if s.IsZero() {
		return Config{}
	}
	return Config{
		Checks: s.Checks, MAC: mac, EtherTypes: slices.Sorted(slices.Values(s.EtherTypes)),
		IPs: slices.SortedFunc(slices.Values(append(Hosts(ips), s.Nets...)), netip.Prefix.Compare),
	}
}

// Hosts returns the addresses as prefixes of one host each.
func Hosts(ips []netip.Addr) (list []netip.Prefix) {
	for _, a := range ips {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

// Encode writes the settings' part of an alias.
func (s Settings) Encode(add func(key, value string)) {
	if s.IsZero() {
		return
	}
	add("security", s.Checks.String())
	add("types", FormatEtherTypes(s.EtherTypes))
	add("nets", FormatNets(s.Nets))
}

// Set sets one field of an alias, and reports whether Encode writes such a value. It ignores a key
// that is not a setting's.
func (s *Settings) Set(key, value string) bool {
	var err error
	switch key {
	case "security":
		s.Checks, err = ParseChecks(value)
	case "types":
		s.EtherTypes, err = parseList(value, MaxEtherTypes, ParseEtherType)
	case "nets":
		s.Nets, err = parseList(value, MaxNets, ParseIP)
	}
	return err == nil
}

func parseList[T any](text string, most int, parse func(string) (T, error)) (list []T, err error) {
	for part := range strings.SplitSeq(text, ",") {
		v, err := parse(part)
		if err != nil || len(list) == most {
			return nil, fmt.Errorf("list %q", text)
		}
		list = append(list, v)
	}
	return list, nil
}

// FormatEtherTypes returns the EtherTypes as text, sorted.
func FormatEtherTypes(types []EtherType) string {
	var texts []string
	for _, t := range slices.Sorted(slices.Values(types)) {
		texts = append(texts, t.String())
	}
	return strings.Join(texts, ",")
}

// FormatNets returns the networks as text, sorted.
func FormatNets(nets []netip.Prefix) string {
	var texts []string
	for _, p := range slices.SortedFunc(slices.Values(nets), netip.Prefix.Compare) {
		texts = append(texts, FormatIP(p))
	}
	return strings.Join(texts, ",")
}
