package policy

import (
	"fmt"
	"slices"

	"vmnet/bridge/brport"
)

// objection says why a rule does not allow a request.
type objection struct{ key, text, cure string }

// objection returns the rule's first objection, or nil if the rule allows all of q.
func (r *rule) objection(q *Request) *objection {
	for _, check := range []func(*Request) *objection{
		r.checkPlace, r.checkMode, r.checkIPs, r.checkGuest,
		r.checkVLANs, r.checkPort, r.checkRequired, r.checkSecurity, r.checkInbound, r.checkRates,
		r.checkShape, r.checkOVS,
		r.checkMAC, r.checkNICs, r.checkQueues,
	} {
		if no := check(q); no != nil {
			return no
		}
	}
	return nil
}

func (r *rule) checkPlace(q *Request) *objection {
	what, key, name, globs := "bridge", "bridges", q.Bridge, r.bridges
	switch {
	case q.Lower != "":
		what, key, name, globs = "lower", "lowers", q.Lower, r.lowers
	case q.Routed != "":
		what, key, name, globs = "uplink", "uplinks", q.Routed, r.uplinks
	case q.Network != "" && matchAny(r.bridges, q.Bridge): // who may have the bridge may be of its network
		return nil
	case q.Network != "":
		what, key, name, globs = "network", "networks", q.Network, r.networks
	}
	if matchAny(globs, name) {
		return nil
	}
	return &objection{key, what + " " + scalar(name) + notAmong(globs), fmt.Sprintf("add %s to %s", scalar(name), key)}
}

// checkGuest restricts the guest's name: interface names are made from it, so a user who chose it
// freely could take the names of other users' guests.
func (r *rule) checkGuest(q *Request) *objection {
	_, limited := r.lines["guests"]
	if q.Guest == "" || !limited || matchAny(r.guests, q.Guest) {
		return nil
	}
	return &objection{
		"guests", "guest " + scalar(q.Guest) + notAmong(r.guests),
		fmt.Sprintf("use another name, or add %s to guests", scalar(q.Guest)),
	}
}

// notAmong returns the end of a sentence about something that is not on a list.
func notAmong(list []string) string {
	if len(list) == 0 {
		return " may not be asked for"
	}
	return " is not among " + listed(list)
}

func (r *rule) checkVLANs(q *Request) *objection {
	for _, asked := range q.vlans() {
		id, outside := firstOutside(asked, r.vlans)
		if !outside {
			continue
		}
		var allowed []string
		for _, v := range r.vlans {
			allowed = append(allowed, brport.FormatVLANs([]brport.VLANRange{v}))
		}
		return &objection{"vlans", fmt.Sprintf("VLAN %d", id) + notAmong(allowed), fmt.Sprintf("add %d to vlans", id)}
	}
	return nil
}

// firstOutside returns the first id of asked that is not in allowed, which is sorted without
// overlaps.
func firstOutside(asked brport.VLANRange, allowed []brport.VLANRange) (id int, outside bool) {
	id = asked.First
	for _, r := range allowed {
		if r.First <= id && id <= r.Last {
			id = r.Last + 1
		}
	}
	return id, id <= asked.Last
}

func (r *rule) checkPort(q *Request) *objection {
	for _, s := range settings {
		if s.word != isolated && s.on(q.Port) && !slices.Contains(r.port, s.word) {
			return &objection{"port", s.word + " may not be asked for", fmt.Sprintf("add %s to port", s.word)}
		}
	}
	return nil
}

// checkRequired applies to ports of bridges only: a macvtap, ipvtap or routed tap has no port.
func (r *rule) checkRequired(q *Request) *objection {
	if q.Lower != "" || q.Routed != "" {
		return nil
	}
	has := map[string]bool{isolated: q.Port.Isolated, vlan: len(q.vlans()) > 0}
	for _, word := range r.require {
		if !has[word] {
			return &objection{"require", fmt.Sprintf("%s must be asked for", word), fmt.Sprintf("ask with --%s", word)}
		}
	}
	return nil
}

// checkOVS restricts what a NIC on a bridge of Open vSwitch may say of itself: OVN gives a port the
// addresses and rules of its id, and who answers at the database's socket says what the bridge is.
// A request without an id gets one made from names.
func (r *rule) checkOVS(q *Request) *objection {
	for _, c := range []struct {
		what, flag, key, asked string
		globs                  []string
		match                  func(globs []string, name string) bool
	}{
		{"iface-id", "--iface-id", "iface-ids", q.IfaceID, r.ifaceIDs, matchAny},
		{"database", "--ovsdb", "ovsdb", q.OVSDB, r.ovsdb, matchAnyPath},
	} {
		if c.asked != "" && !c.match(c.globs, c.asked) {
			return &objection{
				c.key, c.what + " " + scalar(c.asked) + notAmong(c.globs),
				fmt.Sprintf("ask without %s, or add %s to %s", c.flag, scalar(c.asked), c.key),
			}
		}
	}
	return nil
}

// checkMAC allows a request without an address, which gets a unique one made from names.
func (r *rule) checkMAC(q *Request) *objection {
	_, limited := r.lines["macs"]
	if q.MAC == nil || !limited || slices.ContainsFunc(r.macs, func(m macRange) bool { return m.contains(q.MAC) }) {
		return nil
	}
	var allowed []string
	for _, m := range r.macs {
		allowed = append(allowed, m.String())
	}
	return &objection{
		"macs", "MAC " + q.MAC.String() + notAmong(allowed),
		fmt.Sprintf("ask for none, or add \"%s\" to macs", q.MAC),
	}
}

func (r *rule) checkNICs(q *Request) *objection {
	if r.nics == 0 || q.NICs <= r.nics {
		return nil
	}
	return &objection{"nics", fmt.Sprintf("it would be NIC %d of uid %d, who may have %d at one time",
		q.NICs, q.UID, r.nics), "detach one, or raise nics"}
}

func (r *rule) checkQueues(q *Request) *objection {
	if q.Queues <= r.queues {
		return nil
	}
	return &objection{
		"queues", fmt.Sprintf("%d queues are more than %d", q.Queues, r.queues),
		fmt.Sprintf("ask for %d, or write queues: %d", r.queues, q.Queues),
	}
}
