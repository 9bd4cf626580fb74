package network

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
	"vmnet/internal/stablemac"
)

// record is what the alias of a network's bridge says: whose it is, and what the network has
// changed of the host and the last one sets back.
type record struct {
	network    string
	integrated bool // other firewalls may have rules of it
	memory

	uplink   string              // the port to the LAN; empty for none
	joined   []uplink.Membership // of VLANs, which the network has made
	moved    bool                // the bridge has what the host had on the uplink
	deadline time.Duration       // since boot, until which that has to be confirmed; 0 once it is
}

// pending reports whether a move has not been confirmed.
func (r record) pending() bool { return r.moved && r.deadline > 0 }

// memory is how the host was before a network changed it.
type memory struct {
	ip4, ip6 bool     // forwarding was off
	acceptRA []string // links whose accept_ra was 1
}

func (m memory) empty() bool { return !m.ip4 && !m.ip6 && len(m.acceptRA) == 0 }

// and returns what both remember.
func (m memory) and(other memory) memory {
	links := append(slices.Clone(m.acceptRA), other.acceptRA...)
	slices.Sort(links)
	return memory{m.ip4 || other.ip4, m.ip6 || other.ip6, slices.Compact(links)}
}

// without returns what m remembers and other does not.
func (m memory) without(other memory) memory {
	links := slices.DeleteFunc(slices.Clone(m.acceptRA), func(l string) bool {
		return slices.Contains(other.acceptRA, l)
	})
	return memory{m.ip4 && !other.ip4, m.ip6 && !other.ip6, links}
}

// includes reports whether m remembers all that other does.
func (m memory) includes(other memory) bool { return other.without(m).empty() }

const (
	keyNetwork    = config.KeyNetwork
	keyIntegrated = "integrated"
	keyIP4        = "ip_forward"
	keyIP6        = "ip6_forward"
	keyAcceptRA   = "accept_ra"
	keyUplink     = "uplink"
	keyMoved      = "moved"
	keyJoined     = "vlans"
	wasOff        = "0"
	yes           = "1"
	confirmed     = "confirmed" // the value of keyMoved, or the deadline in ms
)

// String returns the alias.
func (r record) String() string {
	text := alias.Prefix + keyNetwork + "=" + alias.Escape(r.network)
	if r.integrated {
		text += " " + keyIntegrated + "=" + yes
	}
	if r.ip4 {
		text += " " + keyIP4 + "=" + wasOff
	}
	if r.ip6 {
		text += " " + keyIP6 + "=" + wasOff
	}
	if len(r.acceptRA) > 0 {
		text += " " + keyAcceptRA + "=" + alias.Escape(strings.Join(r.acceptRA, ","))
	}
	if r.uplink != "" {
		text += " " + keyUplink + "=" + alias.Escape(r.uplink)
	}
	if len(r.joined) > 0 {
		text += " " + keyJoined + "=" + alias.Escape(uplink.FormatMemberships(r.joined))
	}
	switch {
	case r.pending():
		text += fmt.Sprintf(" %s=%d", keyMoved, r.deadline.Milliseconds())
	case r.moved:
		text += " " + keyMoved + "=" + confirmed
	}
	return text
}

// macOf returns the address of a network's bridge. No other bridge of that name has it, so it tells
// one whose making was cut off before it had an alias.
func macOf(network string) net.HardwareAddr { return stablemac.New([]byte{0x02}, "network", network) }

// recordOf reads the alias of a link; ok is false if it is no network's bridge.
func recordOf(l *rtnl.Link) (r record, ok bool) {
	if l.Alias == "" && l.Bridge != nil && bytes.Equal(l.MAC, macOf(l.Name)) {
		return record{network: l.Name}, true
	}
	rest, ok := strings.CutPrefix(l.Alias, alias.Prefix)
	if !ok || l.Bridge == nil {
		return r, false
	}
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := alias.Field(field)
		if err != nil {
			continue
		}
		switch key {
		case keyNetwork:
			r.network = value
		case keyIntegrated:
			r.integrated = value == yes
		case keyIP4:
			r.ip4 = value == wasOff
		case keyIP6:
			r.ip6 = value == wasOff
		case keyAcceptRA:
			r.acceptRA = strings.Split(value, ",")
		case keyUplink:
			r.uplink = value
		case keyJoined:
			r.joined = uplink.ParseMemberships(value)
		case keyMoved:
			ms, _ := strconv.Atoi(value)
			r.moved, r.deadline = true, time.Duration(ms)*time.Millisecond
		}
	}
	return r, r.network != ""
}
