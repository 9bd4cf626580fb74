// Package plaintap makes and marks taps of which no more is known than their bridge: a VMM asked
// for one in the way of qemu-bridge-helper, or made it itself and had it put on a bridge by a
// script. What NIC of the guest it is only the VMM knows.
package plaintap

import (
	"strconv"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
)

// prefix begins the alias of such a tap.
//
// A tap with such an alias counts as its owner's. A tap that Make has made keeps the alias for
// life: the process that holds its queue can make it persistent (TUNSETPERSIST needs no privilege).
// A tap that existed before is given back without an alias. So a tap without one is the user's own,
// since a user cannot remove an alias. The tap's owner proves nothing: TUNSETOWNER needs no
// privilege either.
const prefix = alias.Prefix + "plain "

// Tap is the state of such a tap.
type Tap struct {
	*rtnl.Link
	Owner     int    // uid of the VMM's user
	Source    string // the bridge that it was put on; empty once it was taken off
	Port      string // settings of the bridge port, as brport.Settings writes them
	Elsewhere bool   // it existed before it was put on a bridge: never delete it
	OVS       bool   // the bridge is one of Open vSwitch
	OVSDB     string // socket of its database; empty for the usual one
}

// Alias returns the text of the link's alias.
func (t Tap) Alias() string {
	text := prefix + "uid=" + strconv.Itoa(t.Owner)
	if t.Source != "" {
		text += " source=" + alias.Escape(t.Source)
	}
	if t.Port != "" {
		text += " port=" + alias.Escape(t.Port)
	}
	if t.Elsewhere {
		text += " made=elsewhere"
	}
	if t.OVS {
		text += " type=ovs"
	}
	if t.OVSDB != "" {
		text += " ovsdb=" + alias.Escape(t.OVSDB)
	}
	return text
}

// Parse parses such an alias; the result has no Link. ok is false for any other alias.
func Parse(text string) (t Tap, ok bool) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || len(text) > alias.Max {
		return t, false
	}
	owner := false
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := alias.Field(field)
		if err != nil {
			return Tap{}, false
		}
		switch key {
		case "uid":
			t.Owner, err = strconv.Atoi(value)
			owner = err == nil
		case "source":
			t.Source = value
		case "port":
			t.Port = value
			_, err = brport.Parse(value)
		case "made":
			t.Elsewhere = value == "elsewhere"
		case "type":
			t.OVS = value == "ovs"
		case "ovsdb":
			t.OVSDB = value
		}
		if err != nil {
			return Tap{}, false
		}
	}
	if !owner || t.Source != "" && !brport.ValidName(t.Source) {
		return Tap{}, false
	}
	return t, true
}
