package nic

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
)

// Phase is how far an attach, a detach or a set is, as the alias says.
type Phase string

const (
	PhaseAttaching Phase = "attaching" // not yet plugged
	PhaseStarting  Phase = "starting"  // made for a guest that is about to start
	PhasePlugged   Phase = ""          // the guest has it
	PhaseDetaching Phase = "detaching" // the guest was asked to release it
	PhaseChanging  Phase = "changing"  // the guest has it; a set makes it as the record says
)

// Record is what an interface's alias says: how the NIC should be. It is all that vmnet remembers.
type Record struct {
	VM, NIC  string
	Type     string        // TypeTap, TypeOVS, TypeRouted, TypeSocket, TypeVhostUser, "macvtap" or "ipvtap"
	Source   string        // the bridge, uplink, parent device or switch
	Former   string        // the switch that may still have the tap, which a set has begun to move; empty for none
	Switch   bool          // Source is a userspace switch
	Network  string        // the network whose bridge Source is; empty for none
	IP       []netip.Addr  // the guest's own addresses
	At       int           // interface index of the bridge or uplink; 0 if that is not known
	Port     string        // settings of the port, as brport.Settings writes them
	Security Security      // which of the guest's frames are dropped
	AllowIn  inbound.Rules // what may come in to the guest besides answers; none: everything
	Rates    portrate.Config
	Limits   SwitchLimits // further ones of a switch's port
	Netns    uint64       // inode of the Manager's netns, for a socket and an ipvtap; 0 for others
	Mode     string       // of a macvtap or ipvtap
	RxFilter string       // of a macvtap or ipvtap
	IfaceID  string       // of a port of Open vSwitch; empty for DefaultIfaceID
	OVSDB    string       // socket of its database; empty for the usual one
	MAC      net.HardwareAddr
	Model    string
	Queues   int
	Vhost    bool
	MTU      int    // bytes, that the guest was given; 0 for none
	Options  string // hash of the other options of the request; empty for none
	LinkDown bool   // the guest and its neighbours see no carrier
	Prepared bool   // its device stays down until a commit
	Owner    int    // uid for whom a privileged helper made it; 0 for none
	Via      Via    // ViaLibvirt and ViaName: handed over by name; ViaMonitor: as fds through libvirt; empty: as fds
	Phase    Phase
	Since    int64 // of phase starting: seconds since the machine booted (CLOCK_BOOTTIME)
	Until    int64 // of phase starting, ViaName: when the tap stops waiting for its VMM; likewise
}

// PortConfig returns the settings that the bridge port should have.
func (r Record) PortConfig() brport.Settings {
	cfg, _ := brport.Parse(r.Port) // ParseRecord has tried it
	return cfg
}

// Spec returns a request for such a NIC, as far as the record has it: the further options of the
// request are missing, of which it has only a hash. All else is set, as it was chosen.
func (r Record) Spec() Spec {
	s := Spec{
		Target: Target{VM: r.VM}, NIC: r.NIC, IP: r.IP, Port: r.PortConfig(), MAC: r.MAC, MTU: r.MTU,
		Queues: r.Queues, Vhost: Vhost(OnOff(r.Vhost)), Model: r.Model, Via: r.Via, LinkDown: r.LinkDown,
		Security: r.Security, AllowIn: r.AllowIn, Rates: r.Rates, Prepared: r.Prepared,
		IfaceID: r.IfaceID, OVSDB: r.OVSDB,
	}
	switch {
	case r.Switch:
		by := ByTap
		switch r.Type {
		case TypeSocket:
			by = BySocket
		case TypeVhostUser:
			by = ByVhostUser
		}
		s.Switch = &Switch{
			Name: r.Source, By: by, LockMAC: r.Limits.LockMAC, Storm: r.Limits.Storm,
			MaxAddresses: r.Limits.MaxAddresses,
		}
	case r.Network != "":
		s.Network = r.Network
	case r.Type == TypeRouted:
		s.Routed = r.Source
	case r.Type == TypeTap, r.Type == TypeOVS:
		s.Bridge = r.Source
	default:
		s.Lower = &Lower{Kind: vtap.Kind(r.Type), Device: r.Source, Mode: r.Mode, RxFilter: r.RxFilter}
		if s.Lower.isIPVtap() {
			s.Lower.Addrs, s.IP = portsec.Hosts(r.IP), nil
		}
	}
	return s
}

// IsUp reports whether a device without a carrier of its own, a macvtap or ipvtap, should be up.
func (r Record) IsUp() bool { return !r.Prepared && !r.LinkDown }

// AsPlugged returns the record of the NIC when nothing of it is under way any more.
func (r Record) AsPlugged() Record {
	r.Phase, r.Former = PhasePlugged, ""
	return r
}

// ChangedTo returns the record with all that a set can change taken from now, a later record of the
// same NIC. It is for a NIC whose identity and present state are recorded in two places.
func (r Record) ChangedTo(now Record) Record {
	now.VM, now.NIC, now.Type, now.Source, now.Switch, now.Netns = r.VM, r.NIC, r.Type, r.Source, r.Switch, r.Netns
	now.MAC, now.Model, now.Queues, now.Vhost, now.MTU = r.MAC, r.Model, r.Queues, r.Vhost, r.MTU
	now.Options, now.Owner, now.Via = r.Options, r.Owner, r.Via
	return now
}

// LeavesTraces reports whether something of the NIC stays on the host when its device goes, until
// it is removed: what a routed one needs, or the shaper of a shaped one.
func (r Record) LeavesTraces() bool { return r.Type == TypeRouted || r.Rates.Shape }

// Encode returns the alias. If it would be too long, defaults are left out; it is an error if it is
// still too long (IFALIASZ, 256 bytes).
func (r Record) Encode() (string, error) {
	most := alias.Max
	if r.IsSocket() { // which has a label, that is shorter
		most = procfd.MaxLabel
	}
	text := r.text(false)
	if len(text) > most {
		text = r.text(true)
	}
	if len(text) > most {
		return "", fmt.Errorf("the names need %d bytes of the %d that an interface alias has: "+
			"shorten the guest's name by %d bytes, or use fewer addresses, VLAN ranges or --allow-in",
			len(text), most, len(text)-most)
	}
	return text, nil
}

// text returns the alias; a terse one leaves out the default model and the single queue.
func (r Record) text(terse bool) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(alias.Prefix))
	add := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", key, alias.Escape(value))
		}
	}
	add("vm", r.VM)
	add("nic", r.NIC)
	add("type", r.Type)
	add("source", r.Source)
	if r.Switch {
		add("switch", "on")
	}
	add("network", r.Network)
	if len(r.IP) > 0 {
		add("ip", FormatIPs(r.IP))
	}
	add("port", r.Port)
	r.Security.Encode(add)
	r.AllowIn.Encode(add)
	r.Rates.Encode(add)
	r.Limits.Encode(add)
	if r.Netns != 0 {
		add("netns", strconv.FormatUint(r.Netns, 10))
	}
	add("iface", r.IfaceID)
	add("ovsdb", r.OVSDB)
	add("mode", r.Mode)
	add("rx", r.RxFilter)
	add("mac", r.MAC.String())
	if !terse || r.Model != DefaultModel {
		add("model", r.Model)
	}
	if !terse || r.Queues != 1 {
		add("queues", strconv.Itoa(r.Queues))
	}
	if r.Vhost {
		add("vhost", "on")
	}
	if r.MTU != 0 {
		add("mtu", strconv.Itoa(r.MTU))
	}
	if r.LinkDown {
		add("link", "down")
	}
	if r.Prepared {
		add("prepared", "yes")
	}
	add("opts", r.Options)
	if r.Owner != 0 {
		add("uid", strconv.Itoa(r.Owner))
	}
	add("via", string(r.Via))
	add("state", string(r.Phase))
	add("former", r.Former)
	if r.Phase == PhaseStarting {
		add("since", strconv.FormatInt(r.Since, 10))
	}
	if r.Phase == PhaseStarting && r.Until != 0 {
		add("until", strconv.FormatInt(r.Until, 10))
	}
	if at := " at=" + strconv.Itoa(r.At); r.At != 0 && b.Len()+len(at) <= alias.Max {
		// it can be done without: see follow
		b.WriteString(at)
	}
	return b.String()
}

// ParseRecord reads an alias. ok is false if it is not vmnet's. Keys that this version does
// not know are ignored, but not unknown words of port=.
func ParseRecord(text string) (r Record, ok bool) {
	rest, ok := strings.CutPrefix(text, alias.Prefix)
	if !ok || len(text) > alias.Max {
		return Record{}, false
	}
	r = Record{Model: DefaultModel, Queues: 1}
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := alias.Field(field)
		if err != nil || !r.set(key, value) {
			return Record{}, false
		}
	}
	known := r.Type == TypeTap || r.Type == TypeOVS || r.Type == TypeRouted && len(r.IP) > 0 ||
		r.IsSocket() && r.Switch || r.Type == string(vtap.Macvtap) || r.Type == string(vtap.IPVtap)
	return r, known && ValidVM(r.VM) == nil && ValidNIC(r.NIC) == nil && r.Queues >= 1 && len(r.MAC) == 6
}

// set sets one field, and reports whether Encode writes such a value.
func (r *Record) set(key, value string) bool {
	var err error
	switch key {
	case "vm":
		r.VM = value
	case "nic":
		r.NIC = value
	case "type":
		r.Type = value
	case "source":
		r.Source = value
	case "former":
		r.Former = value
	case "network":
		r.Network = value
	case "ip":
		r.IP, err = parseIPs(value)
	case "port":
		r.Port = value
		_, err = brport.Parse(value)
	case "switch":
		r.Switch = value == "on"
	case "netns":
		r.Netns, err = strconv.ParseUint(value, 10, 64)
	case "iface":
		r.IfaceID = value
	case "ovsdb":
		r.OVSDB = value
	case "mode":
		r.Mode = value
	case "rx":
		r.RxFilter = value
	case "mac":
		r.MAC, err = net.ParseMAC(value)
	case "model":
		r.Model = value
	case "queues":
		r.Queues, err = strconv.Atoi(value)
		return err == nil && r.Queues <= MaxQueues
	case "vhost":
		r.Vhost = value == "on"
	case "mtu":
		r.MTU, err = strconv.Atoi(value)
	case "at":
		r.At, err = strconv.Atoi(value)
	case "link":
		r.LinkDown = value == "down"
	case "prepared":
		r.Prepared = value == "yes"
	case "opts":
		r.Options = value
	case "uid":
		r.Owner, err = strconv.Atoi(value)
	case "via":
		r.Via = Via(value)
		return r.Via == ViaLibvirt || r.Via == ViaMonitor || r.Via == ViaName
	case "state":
		r.Phase = Phase(value)
	case "since":
		r.Since, err = strconv.ParseInt(value, 10, 64)
	case "until":
		r.Until, err = strconv.ParseInt(value, 10, 64)
	default:
		return r.Limits.Set(key, value) && r.Security.Set(key, value) && r.AllowIn.Set(key, value) &&
			r.Rates.Set(key, value)
	}
	return err == nil
}

// ByName reports whether another process opens the device by its name.
func (v Via) ByName() bool { return v == ViaLibvirt || v == ViaName }

// EthernetMTU is the MTU that a guest assumes by default, in bytes.
const EthernetMTU = 1500

// GuestMTU returns the MTU that the guest uses, in bytes.
func (r Record) GuestMTU() int { return cmp.Or(r.MTU, EthernetMTU) }

// Label returns the record as the text of a label, for a NIC of the netns with that inode. If it is
// too long, defaults are left out, and then everything but the NIC's identity; it is empty if even
// that is too long.
func (r Record) Label(own uint64) string {
	r.Phase, r.Since, r.Netns, r.Prepared = PhasePlugged, 0, own, r.Prepared && r.IsSocket()
	if text := r.text(true); len(text) <= procfd.MaxLabel {
		return text
	}
	short := Record{
		VM: r.VM, NIC: r.NIC, Type: r.Type, Source: r.Source, Switch: r.Switch, Netns: own, Mode: r.Mode, MAC: r.MAC,
		Model: DefaultModel, Queues: 1, Via: r.Via, Prepared: r.Prepared,
	}
	if text := short.text(true); len(text) <= procfd.MaxLabel {
		return text
	}
	return ""
}

// Inbound returns what may come in to the guest; its zero value is everything.
func (r Record) Inbound() inbound.Config {
	return inbound.Config{Rules: r.AllowIn, EtherTypes: r.Security.EtherTypes}
}

// PortSecurity returns what the guest's frames are checked by; its zero value is nothing.
func (r Record) PortSecurity() portsec.Config { return r.Security.Config(r.MAC, r.IP) }

// maxIPs is how many addresses a NIC has at most: the alias has room for few.
const maxIPs = 8

// parseIPs parses the addresses of a record, and sorts them.
func parseIPs(text string) (ips []netip.Addr, err error) {
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(part)
		if err != nil || !validIP(a) || len(ips) == maxIPs || slices.Contains(ips, a) {
			return nil, fmt.Errorf("addresses %q", text)
		}
		ips = append(ips, a)
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips, nil
}

// FormatIPs returns addresses as text, sorted and separated by commas.
func FormatIPs(ips []netip.Addr) string {
	var texts []string
	for _, a := range slices.SortedFunc(slices.Values(ips), netip.Addr.Compare) {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// DefaultIfaceID returns the id by which OVN knows a NIC whose Spec has none: a UUID, always the
// same on one machine.
func DefaultIfaceID(vm, nic string) string { return stablemac.UUID("iface", vm, nic) }

// OVSIfaceID returns the id by which OVN knows the NIC; empty if it is no port of Open vSwitch.
func (r Record) OVSIfaceID() string {
	if r.Type != TypeOVS || r.VM == "" { // of a plain tap nobody knows the NIC
		return ""
	}
	return cmp.Or(r.IfaceID, DefaultIfaceID(r.VM, r.NIC))
}

// IsSocket reports whether the NIC has no interface on the host: a socket connects QEMU with a
// userspace switch.
func (r Record) IsSocket() bool { return isSocket(r.Type) }

func isSocket(kind string) bool { return kind == TypeSocket || kind == TypeVhostUser }
