// Package plaintap makes and marks taps of which no more is known than their bridge: a VMM asked for
// one in the way of qemu-bridge-helper, or made it itself and had it put on a bridge by a script. What
// NIC of the guest it is only the VMM knows.
package plaintap

import (
	"fmt"
	"strconv"
	"strings"

	"vmnet/bridge"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
)

// prefix begins the alias of such a tap.
//
// As long as a tap has such an alias it counts as its owner's. A tap that Make has made has
// one for all of its life: who holds its queue may keep it (TUNSETPERSIST asks for no right).
// One that was there without us is given back without an alias. TUNSETOWNER asks for
// no right either, so the tap's owner is no proof that it is the user's own; that it came
// without our alias, which a user cannot take away, is.
const prefix = alias.Prefix + "plain "

// Tap is such a tap as it is.
type Tap struct {
	*rtnl.Link
	Owner     int    // uid of the VMM's user
	Source    string // the bridge that it was put on; empty where it was taken off
	Port      string // settings of the bridge port, as bridge.PortConfig writes them
	Elsewhere bool   // it was there before it was put on a bridge, and is not ours to delete
}

// Alias is what its link says.
func (t Tap) Alias() string {
	text := fmt.Sprintf("%suid=%d", prefix, t.Owner)
	if t.Source != "" {
		text += " source=" + alias.Escape(t.Source)
	}
	if t.Port != "" {
		text += " port=" + alias.Escape(t.Port)
	}
	if t.Elsewhere {
		text += " made=elsewhere"
	}
	return text
}

// Parse reads such an alias; the result has no Link. ok is false for any other.
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
			_, err = bridge.ParsePortConfig(value)
		case "made":
			t.Elsewhere = value == "elsewhere"
		}
		if err != nil {
			return Tap{}, false
		}
	}
	if !owner || t.Source != "" && !bridge.ValidName(t.Source) {
		return Tap{}, false
	}
	return t, true
}
