package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
)

// Request is a NIC that a user asks for.
type Request struct {
	UID    int
	GIDs   []int  // all groups of the process, in any order
	Guest  string // its name, from which interface names are made; empty: none asked for
	Bridge string // or Lower, or Routed
	// Network is the network of which the guest would be, and the name of Bridge; empty for none.
	Network string
	Routed  string // the uplink on which the host would answer for Addrs
	Port    brport.Settings
	Lower   string         // the parent device of a macvtap or ipvtap
	Kind    vtap.Kind      // of the device on Lower
	Mode    string         // of vtap.Modes(Kind), never empty
	Addrs   []netip.Prefix // of the guest of an ipvtap, of a network or of a routed NIC, or with Checks
	// Checks are those of port security, and EtherTypes pass them.
	Checks     portsec.Checks
	AllowIn    inbound.Rules // what may come in to the guest; none: everything
	Rates      portrate.Config
	EtherTypes []portsec.EtherType
	IfaceID    string           // on a bridge of Open vSwitch; empty: none asked for
	OVSDB      string           // likewise the socket of its database
	MAC        net.HardwareAddr // nil: none asked for
	Queues     int              // 0: 1; an automatic number must have been decided before
	NICs       int              // how many the user would have then
}

// Verdict is the answer to a Request.
type Verdict struct {
	Allowed bool
	By      string   // the rule that allows it as "FILE:LINE", or a few words
	Line    int      // of that rule; 0: no rule
	Reasons []Reason // for a denial: one for each rule for the user, or one that there is no rule
	Example string   // for a denial: lines of a policy file that would allow it; may be empty
}

// Reason says why something is denied.
type Reason struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // 0: about the whole file
	Text string `json:"text"`
	Cure string `json:"cure,omitempty"`
}

// String returns the reason with its place, if it has one, and the cure in brackets.
func (r Reason) String() string {
	text := r.Text
	switch {
	case r.Line > 0:
		text = fmt.Sprintf("%s:%d: %s", r.File, r.Line, r.Text)
	case r.File != "":
		text = r.File + ": " + r.Text
	}
	if r.Cure != "" {
		text += " (" + r.Cure + ")"
	}
	return text
}

// Err returns nil for an allowed request. For a denial it gives the reasons on one line, followed
// by the Example on lines of its own.
func (v Verdict) Err() error {
	if v.Allowed {
		return nil
	}
	var texts []string
	for _, r := range v.Reasons {
		texts = append(texts, r.String())
	}
	text := "denied: " + strings.Join(texts, "; ")
	if v.Example != "" {
		text += "\n" + v.Example
	}
	return errors.New(text)
}

// noFile is the rule that applies without a file.
var noFile = rule{anybody: true, bridges: []string{"*"}, queues: defaultQueues}

// Decide reports whether q is allowed: one rule for the user must allow all of it. Root is not
// restricted, since root could rewrite the file. bridge.conf must allow a bridge as well.
func (p *Policy) Decide(q Request) Verdict {
	if err := q.Validate(); err != nil {
		return Verdict{Reasons: []Reason{{Text: err.Error()}}}
	}
	switch {
	case q.UID == 0:
		return Verdict{Allowed: true, By: "the privilege of root"}
	case p == nil:
		return withoutFile(&q)
	}
	return p.decide(&q)
}

func (p *Policy) decide(q *Request) Verdict {
	var v Verdict
	ids := newNames()
	for i := range p.rules {
		r := &p.rules[i]
		if !r.isFor(q, ids) {
			continue
		}
		no := r.objection(q)
		if no == nil {
			return Verdict{Allowed: true, By: fmt.Sprintf("%s:%d", p.File, r.line), Line: r.line}
		}
		at := r.line
		if l := r.lines[no.key]; l > 0 {
			at = l
		}
		v.Reasons = append(v.Reasons, Reason{p.File, at, no.text, no.cure})
	}
	if len(v.Reasons) == 0 {
		v.Reasons = []Reason{{
			File: p.File, Text: fmt.Sprintf("no rule is for uid %d", q.UID),
			Cure: "add under rules: " + q.rule(),
		}}
	}
	return v
}

// withoutFile shows a file that would allow q and change nothing for all others.
func withoutFile(q *Request) Verdict {
	no := noFile.objection(q)
	if no == nil {
		return Verdict{Allowed: true, By: "the defaults without " + DefaultPath}
	}
	return Verdict{
		Reasons: []Reason{{
			File: DefaultPath, Text: "it does not exist, and without it " + no.text,
			Cure: "write it as policy.yaml(5) describes",
		}},
		Example: "rules:\n  - {users: [\"*\"], bridges: [\"*\"]}\n  " + q.rule(),
	}
}

// Validate refuses what no user may ask for, such as invalid interface names. Decide denies it.
func (q *Request) Validate() error {
	name := cmp.Or(q.Bridge, q.Lower, q.Routed)
	switch {
	case name == "" || q.Bridge+q.Lower+q.Routed != name:
		return errors.New("want one of a bridge, a parent device and an uplink")
	case q.Network != "" && q.Network != q.Bridge:
		return fmt.Errorf("network %q: its bridge has its name", q.Network)
	case !brport.ValidName(name):
		return fmt.Errorf("name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", name)
	case q.MAC != nil && (len(q.MAC) != 6 || q.MAC[0]&1 != 0 || number(q.MAC) == 0):
		return fmt.Errorf("MAC %s: want 6 bytes, neither multicast nor zero", q.MAC)
	case q.UID < 0 || q.Queues < 0 || q.NICs < 0:
		return fmt.Errorf("uid %d, %d queues, %d NICs: negative numbers are not allowed", q.UID, q.Queues, q.NICs)
	}
	return cmp.Or(q.validateLower(), q.AllowIn.Validate(), q.Rates.Validate(), q.Port.Validate())
}

// vlans returns the VLANs that the request asks for, tagged or not.
func (q *Request) vlans() []brport.VLANRange {
	asked := slices.Clone(q.Port.Trunk)
	for _, id := range []int{q.Port.VLAN, q.Port.Native} {
		if id != 0 {
			asked = append(asked, brport.VLANRange{First: id, Last: id})
		}
	}
	return asked
}

// rule returns a rule that allows the request, as a line of the file.
func (q *Request) rule() string {
	items := []string{fmt.Sprintf("users: [%d]", q.UID)}
	switch {
	case q.Lower != "":
		items = append(items, "lowers: ["+scalar(q.Lower)+"]")
	case q.Routed != "":
		items = append(items, "uplinks: ["+scalar(q.Routed)+"]")
	case q.Network != "":
		items = append(items, "networks: ["+scalar(q.Network)+"]")
	default:
		items = append(items, "bridges: ["+scalar(q.Bridge)+"]")
	}
	if q.Lower != "" && !slices.Contains(defaultModes, q.Mode) {
		items = append(items, withMode(q.Mode))
	}
	var ips []string
	for _, p := range q.Addrs {
		ips = append(ips, fmt.Sprintf("%q", portsec.FormatIP(q.asked(p))))
	}
	if len(ips) > 0 {
		items = append(items, "ips: ["+strings.Join(ips, ", ")+"]")
	}
	if vlans := q.vlans(); len(vlans) > 0 {
		items = append(items, "vlans: ["+brport.FormatVLANs(vlans)+"]")
	}
	var port []string
	for _, s := range settings {
		if s.on(q.Port) && s.word != isolated {
			port = append(port, s.word)
		}
	}
	if len(port) > 0 {
		items = append(items, "port: ["+strings.Join(port, ", ")+"]")
	}
	if q.IfaceID != "" {
		items = append(items, "iface-ids: ["+scalar(q.IfaceID)+"]")
	}
	if q.OVSDB != "" {
		items = append(items, "ovsdb: ["+scalar(q.OVSDB)+"]")
	}
	if q.Queues > defaultQueues {
		items = append(items, fmt.Sprintf("queues: %d", q.Queues))
	}
	return "- {" + strings.Join(items, ", ") + "}"
}

// scalar writes a name for YAML and for a reader: characters that could control a terminal are
// quoted.
func scalar(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-._") == "" && s[0] >= 'a' && s != "null" {
		return s
	}
	return fmt.Sprintf("%q", s)
}
