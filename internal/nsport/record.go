package nsport

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
)

// A Record is what an alias says about an attachment.
type Record struct {
	Netns     string // as it was named
	ID        string
	Type      string // Veth, Macvlan or IPVlan
	Source    string // the bridge or parent device
	At        int    // index of the bridge; 0 if the alias has no room for it
	Network   string // the network that was named; empty for none
	Interface string // the end in the namespace
	Mode      string
	MAC       net.HardwareAddr // of the end in the namespace; nil for an ipvlan
	MTU       int              // that was requested, in bytes; 0 for none
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	Port      string // brport.Settings.String
	// Unfinished says that an attach is under way, or was interrupted.
	Unfinished bool
}

// The keys of a Record, in the order in which they are written.
const (
	keyNetns     = "netns"
	keyID        = "id"
	keyType      = "type"
	keySource    = "source"
	keyAt        = "at"
	keyNetwork   = "network"
	keyInterface = "ifname"
	keyMode      = "mode"
	keyMAC       = "mac"
	keyMTU       = "mtu"
	keyAddress   = "ip"
	keyGateway   = "via"
	keyPort      = "port"
	keyState     = "state"

	attaching = "attaching"
)

// String returns the alias.
func (r Record) String() string {
	var b strings.Builder
	b.WriteString(strings.TrimSuffix(alias.Prefix, " "))
	for _, f := range r.fields() {
		if f.value != "" {
			b.WriteString(" " + f.key + "=" + alias.Escape(f.value))
		}
	}
	return b.String()
}

type field struct{ key, value string }

func (r Record) fields() []field {
	mac, mtu, at, state := "", "", "", ""
	if r.MAC != nil {
		mac = r.MAC.String()
	}
	if r.MTU != 0 {
		mtu = strconv.Itoa(r.MTU)
	}
	if r.At != 0 {
		at = strconv.Itoa(r.At)
	}
	if r.Unfinished {
		state = attaching
	}
	return []field{
		{keyNetns, r.Netns},
		{keyID, r.ID},
		{keyType, r.Type},
		{keySource, r.Source},
		{keyAt, at},
		{keyNetwork, r.Network},
		{keyInterface, r.Interface},
		{keyMode, r.Mode},
		{keyMAC, mac},
		{keyMTU, mtu},
		{keyAddress, joined(r.Addresses)},
		{keyGateway, joined(r.Gateways)},
		{keyPort, r.Port},
		{keyState, state},
	}
}

func joined[T fmt.Stringer](all []T) string {
	texts := make([]string, 0, len(all))
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ",")
}

// ParseRecord parses the alias of a link; ok is false for one that is not an attachment's. Unknown
// keys are ignored.
func ParseRecord(text string) (r Record, ok bool) {
	rest, ok := strings.CutPrefix(text, alias.Prefix+keyNetns+"=")
	if !ok {
		return r, false
	}
	seen := map[string]bool{}
	for f := range strings.SplitSeq(keyNetns+"="+rest, " ") {
		key, value, err := alias.Field(f)
		if err != nil || seen[key] || !r.set(key, value) {
			return Record{}, false
		}
		seen[key] = true
	}
	return r, r.valid()
}

// set sets one field, and reports whether the value is a possible one.
func (r *Record) set(key, value string) bool {
	var err error
	switch key {
	case keyNetns:
		r.Netns = value
	case keyID:
		r.ID = value
	case keyType:
		r.Type = value
	case keySource:
		r.Source = value
	case keyAt:
		r.At, err = strconv.Atoi(value)
	case keyNetwork:
		r.Network = value
	case keyInterface:
		r.Interface = value
	case keyMode:
		r.Mode = value
	case keyMAC:
		r.MAC, err = net.ParseMAC(value)
	case keyMTU:
		r.MTU, err = strconv.Atoi(value)
	case keyAddress:
		r.Addresses, err = split(value, netip.ParsePrefix)
	case keyGateway:
		r.Gateways, err = split(value, netip.ParseAddr)
	case keyPort:
		r.Port = value
		_, err = brport.Parse(value)
	case keyState:
		r.Unfinished = value == attaching
	}
	return err == nil
}

func split[T any](list string, parse func(string) (T, error)) (all []T, err error) {
	for text := range strings.SplitSeq(list, ",") {
		v, err := parse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (r Record) valid() bool {
	return r.Netns != "" && validID(r.ID) && slices.Contains([]string{Veth, Macvlan, IPVlan}, r.Type) &&
		brport.ValidName(r.Source) && brport.ValidName(r.Interface)
}

// Differences returns how other differs from r, for people. What only says how far an attach has
// come does not count, nor how the namespace was named, nor which of several bridges of a name that
// followed each other is meant.
func (r Record) Differences(other Record) (all []string) {
	others := other.fields()
	for i, f := range r.fields() {
		if f.key == keyNetns || f.key == keyAt || f.key == keyState || f.value == others[i].value {
			continue
		}
		all = append(all, fmt.Sprintf("%s %s, want %s", words[f.key], cmp.Or(f.value, "none"),
			cmp.Or(others[i].value, "none")))
	}
	return all
}

// words are what people call the keys.
var words = map[string]string{
	keyID: "id", keyType: "type", keySource: "bridge or parent device", keyNetwork: "network",
	keyInterface: "interface", keyMode: "mode", keyMAC: "MAC", keyMTU: "MTU", keyAddress: "addresses",
	keyGateway: "gateways", keyPort: "port settings",
}
