package nic

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/macvtap/vtap"
	"vmnet/step"
)

// Target names the guest that a NIC belongs to, and how to reach its VMM.
type Target struct {
	VM  string // the guest's name, as in QEMU's -name guest=
	QMP string // path of its monitor's socket; empty means as its command line says
	PID int    // its process; 0 means the one of that name
}

// Spec is the request for a NIC. It is data: nothing exists before the attach.
type Spec struct {
	Target
	NIC     string  // id within the guest, [a-z0-9_]{1,12}; empty means net0
	Bridge  string  // the bridge that a tap becomes a port of; or else:
	Network string  // the network (vmnet network) on whose bridge it is; or:
	Routed  string  // the uplink on which the host answers for the guest's addresses; or:
	Lower   *Lower  // the parent device of a macvtap or ipvtap; or:
	Switch  *Switch // the userspace switch that it becomes a port of
	// IP are the guest's own addresses: on a network, routed, or for port security. On a switch
	// without that they mean something only if it is the one of a user's network.
	IP            []netip.Addr
	Security      Security          // which of the guest's frames are dropped; what is there stays without Checks
	AllowIn       inbound.Rules     // what may come in to the guest besides answers; none: everything
	Rates         portrate.Config   // how much traffic the NIC may have
	Port          brport.Settings   // how the port of bridge or switch is set
	IfaceID       string            // on a bridge of Open vSwitch: by which OVN knows it; empty means DefaultIfaceID
	OVSDB         string            // socket of its database; empty means the usual one
	MAC           net.HardwareAddr  // the guest's; nil means DefaultMAC, or the parent's if the kernel demands that
	MTU           int               // bytes, that the guest gets; 0 means the bridge's or parent's, 1500 on a switch
	Queues        int               // queue pairs; 0 means 1, QueuesAuto the number of vCPUs
	Vhost         Vhost             // empty means auto
	Model         string            // QEMU's device; empty means virtio-net-pci
	DeviceOptions map[string]string // further properties of the device
	Via           Via               // how a libvirt guest gets it; empty means ViaLibvirt if that is possible
	Device        string            // name of the interface; empty means InterfaceName
	LinkDown      bool              // the guest and its neighbours see no carrier, from the start
	Prepared      bool              // its device stays down until a commit
	Persistent    bool              // libvirt stores the NIC in the guest's persistent definition, too
}

// Via says how a guest that libvirt manages gets a NIC.
type Via string

// ViaLibvirt gives libvirt the name of the finished device: libvirt plugs it, and knows it.
// ViaMonitor passes fds to QEMU through libvirt's monitor commands: libvirt does not know the NIC,
// marks the domain as tainted, and cannot migrate it.
const (
	ViaLibvirt Via = "libvirt"
	ViaMonitor Via = "monitor"
)

// Lower is the parent device of a NIC without a bridge, and how the NIC uses it.
type Lower struct {
	Kind      vtap.Kind
	Device    string             // the parent's interface name
	Mode      string             // of vtap.Modes(Kind); empty means the first of them
	NoPromisc bool               // mode passthru: do not make the parent promiscuous
	Sources   []net.HardwareAddr // mode source: the senders whose frames the guest gets
	Flag      string             // ipvtap: "bridge", "private", "vepa"
	Addrs     []netip.Prefix     // ipvtap: the guest's own addresses, by which the kernel delivers
	RxFilter  string             // RxAllMulti, RxNone or RxMirror; empty means RxAllMulti
}

// What a macvtap or ipvtap receives besides frames for its guest's address and broadcasts. The
// guest's own list of multicast groups does not reach the host: with RxNone its IPv6 neighbours
// cannot find it, and mDNS does not reach it. Hence the default.
const (
	RxAllMulti = "allmulti"
	RxNone     = "none"
	// RxMirror receives the groups that the guest's driver has asked for, which vmnet watch finds
	// out; until it has, all of them.
	RxMirror = "mirror"
)

// QueuesAuto asks for a queue pair per vCPU, at most MaxAutoQueues.
const QueuesAuto = -1

// Limits of a Spec.
const (
	MaxAutoQueues = 8
	MaxQueues     = 256 // IFF_MULTI_QUEUE's own (MAX_TAP_QUEUES)
	MaxVMName     = 200 // bytes, of which the alias holds about 170, or less with many settings beside it
	maxOptions    = 32
	minMTU        = 68 // the least that IPv4 works with (RFC 791), and virtio-net's
	maxMTU        = 65535
)

// Vhost says whether the kernel's vhost-net moves the frames.
type Vhost string

// VhostAuto uses vhost-net if the host has it.
const (
	VhostAuto Vhost = "auto"
	VhostOn   Vhost = "on"
	VhostOff  Vhost = "off"
)

// DefaultModel is the QEMU device of a NIC whose Spec has no model.
const DefaultModel = "virtio-net-pci"

// ownOptions are the device properties that the Spec or the hand-over sets, with the flag for each.
var ownOptions = map[string]string{
	"driver": "--model", "id": "--nic", "netdev": "", "mac": "--mac",
	"mq": "--queues", "vectors": "--queues", "host_mtu": "--mtu",
}

// InterfaceName returns the name of the device, and an altname if that name is not made from those
// of guest and NIC.
func (s Spec) InterfaceName() (name, altName string) {
	name, altName = InterfaceName(s.VM, s.NIC)
	if s.Device == "" || s.Device == name {
		return name, altName
	}
	return s.Device, name // by which it is found
}

// WithDefaults fills in what an empty field means, except what depends on the guest.
func (s Spec) WithDefaults() Spec {
	if s.NIC == "" {
		s.NIC = "net0"
	}
	if s.MAC == nil && !s.Lower.ownsMAC() {
		s.MAC = DefaultMAC(s.VM, s.NIC)
	}
	if s.Lower != nil {
		lower := *s.Lower
		lower.Mode = cmp.Or(lower.Mode, vtap.Modes(lower.Kind)[0])
		lower.RxFilter = cmp.Or(lower.RxFilter, RxAllMulti)
		s.Lower = &lower
	}
	if s.Switch != nil {
		sw := *s.Switch
		sw.By = cmp.Or(sw.By, ByAuto)
		if s.Prepared && sw.By == ByAuto {
			sw.By = ByTap
		}
		s.Switch = &sw
	}
	if s.Queues == 0 {
		s.Queues = 1
	}
	if s.Vhost == "" {
		s.Vhost = VhostAuto
	}
	if s.Model == "" {
		s.Model = DefaultModel
	}
	return s
}

// WithSource is the Spec with the bridge, lower or switch of that name.
func (s Spec) WithSource(source string) Spec {
	if s.Switch != nil {
		sw := *s.Switch
		sw.Name = source
		s.Switch = &sw
		return s
	}
	switch {
	case s.Network != "": // its bridge has its name
		s.Network = source
		return s
	case s.Routed != "":
		s.Routed = source
		return s
	}
	if s.Lower == nil {
		s.Bridge = source
		return s
	}
	lower := *s.Lower
	lower.Device = source
	s.Lower = &lower
	return s
}

// Source names what the NIC is on, as it was asked for.
func (s Spec) Source() string {
	switch {
	case s.Switch != nil:
		return s.Switch.Name
	case s.Lower != nil:
		return s.Lower.Device
	}
	return cmp.Or(s.Bridge, s.Network, s.Routed) // a network's bridge has its name
}

// Validate checks the Spec alone; it uses neither kernel nor VMM. Its error matches ErrInvalid.
func (s Spec) Validate() error {
	d := s.WithDefaults()
	return step.WithStage(ErrInvalid,
		cmp.Or(ValidVM(d.VM), ValidNIC(d.NIC), s.validatePrepared(), d.validateHost(), d.validateDevice()))
}

// CheckLinkUp returns an error that matches ErrInvalid if the link should be down from the start,
// for a guest that is yet to start: QEMU's command line has nothing for that.
func (s Spec) CheckLinkUp() error {
	if s.LinkDown {
		return step.WithStage(ErrInvalid, fmt.Errorf("a guest starts with its link up (vmnet set --link down then)"))
	}
	return nil
}

// validatePrepared checks what a NIC must be whose guest comes from another QEMU: its address is in
// the guest's state, and its device can be made without traffic, and goes up by itself.
func (s Spec) validatePrepared() error {
	switch {
	case !s.Prepared:
		return nil
	case s.Lower.isIPVtap():
		return fmt.Errorf("an ipvtap cannot be prepared: its guest has the address of the parent device, " +
			"which is another one where the guest comes from (--macvtap, --bridge or --network)")
	case s.Routed != "":
		return fmt.Errorf("a routed NIC cannot be prepared: the host that the guest comes from answers " +
			"for its addresses until it ends (--bridge or --network)")
	case s.Switch != nil && s.Switch.By == BySocket:
		return fmt.Errorf("a socket to a switch cannot be prepared: it has no device that could be down " +
			"(vmnet prepare --via tap)")
	case s.Via != "" || s.Persistent:
		return fmt.Errorf("a NIC of a libvirt guest cannot be prepared: libvirt migrates its guests itself, " +
			"and vmnet's hook makes their NICs (vmnet hook install)")
	case s.MAC == nil:
		return fmt.Errorf("a prepared NIC needs the address that the guest has where it comes from: --mac " +
			"(vmnet list shows it there)")
	}
	return nil
}

// ValidVM checks a guest's name.
func ValidVM(name string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	switch {
	case name == "":
		return fmt.Errorf("no guest is named (--vm)")
	case len(name) > MaxVMName:
		return fmt.Errorf("guest name of %d bytes: at most %d fit", len(name), MaxVMName)
	case strings.ContainsFunc(name, bad):
		return fmt.Errorf("guest name %q: want printable UTF-8 text", name)
	}
	return nil
}

// ValidNIC checks a NIC's id.
func ValidNIC(id string) error {
	if !formed(id, 12, lowerCase+digits+"_", "") {
		return fmt.Errorf("NIC id %q: want 1 to 12 of a-z, 0-9 and _", id)
	}
	return nil
}

func (s Spec) validateHost() error {
	switch {
	case s.places() == 0:
		return fmt.Errorf("neither bridge nor network nor lower nor switch nor uplink is named " +
			"(--bridge, --network, --macvtap, --ipvtap, --switch or --routed)")
	case s.places() > 1:
		return fmt.Errorf("a NIC is either on a bridge, on a network, on a lower, on a switch or routed")
	case s.Bridge != "" && !brport.ValidName(s.Bridge):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Bridge)
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", s.MTU, minMTU, maxMTU)
	case s.Vhost != VhostAuto && s.Vhost != VhostOn && s.Vhost != VhostOff:
		return fmt.Errorf("vhost %q: want auto, on or off", s.Vhost)
	case s.Via != "" && s.Via != ViaLibvirt && s.Via != ViaMonitor:
		return fmt.Errorf("via %q: want %s or %s", s.Via, ViaLibvirt, ViaMonitor)
	case s.Device != "" && !brport.ValidName(s.Device):
		return fmt.Errorf("interface name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Device)
	case s.Via == ViaMonitor && s.Persistent:
		return fmt.Errorf("libvirt cannot store a NIC that it does not know (--persistent without --via monitor)")
	case s.Queues != QueuesAuto && (s.Queues < 1 || s.Queues > MaxQueues):
		return fmt.Errorf("%d queues: want 1 to %d, or auto", s.Queues, MaxQueues)
	}
	if s.MAC != nil {
		if err := s.validateMAC(); err != nil {
			return err
		}
	}
	if (s.Lower != nil || s.Routed != "") && !s.Port.IsZero() {
		return fmt.Errorf("VLANs, isolation, hairpin, learning and flooding are settings of a port of a bridge or " +
			"switch: a NIC on a parent device or a routed one has none")
	}
	if s.Network != "" || s.Routed != "" || len(s.IP) > 0 {
		if err := s.validateNetwork(); err != nil {
			return err
		}
	}
	if s.Switch != nil {
		if s.Rates.Shape {
			return fmt.Errorf("a switch shapes what a guest sends by itself, and cannot shape what the guest " +
				"receives (without --shape; or --bridge)")
		}
		if err := s.Switch.validate(s); err != nil {
			return err
		}
	}
	return cmp.Or(s.validateOVS(), s.Port.Validate(), s.Lower.validate(s.MAC), s.validateSecurity(),
		s.validateInbound(), s.Rates.Validate())
}

// places returns how many of the places in which a NIC can be are named.
func (s Spec) places() (n int) {
	for _, named := range []bool{s.Bridge != "", s.Network != "", s.Routed != "", s.Lower != nil, s.Switch != nil} {
		if named {
			n++
		}
	}
	return n
}

func (s Spec) validateMAC() error {
	switch {
	case len(s.MAC) != 6 || s.MAC[0]&1 != 0 || s.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("MAC %s: want 6 bytes, neither multicast nor zero", s.MAC)
	case s.MAC[0] == hostMACByte && s.Lower == nil:
		return fmt.Errorf("MAC %s: addresses that begin with fe are those of the host's side", s.MAC)
	}
	return nil
}

// validate checks what needs no kernel; a nil Lower is valid.
func (l *Lower) validate(mac net.HardwareAddr) error {
	switch {
	case l == nil:
		return nil
	case !brport.ValidName(l.Device):
		return fmt.Errorf("lower name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", l.Device)
	case !slices.Contains([]string{RxAllMulti, RxNone, RxMirror}, l.RxFilter):
		return fmt.Errorf("rx filter %q: want %s, %s or %s", l.RxFilter, RxAllMulti, RxNone, RxMirror)
	}
	return l.Config("x", mac).Validate()
}

// Config returns the settings of the device that the NIC gets.
func (l *Lower) Config(name string, mac net.HardwareAddr) vtap.Config {
	return vtap.Config{
		Kind: l.Kind, Name: name, Mode: l.Mode, MAC: mac,
		NoPromisc: l.NoPromisc, Sources: l.Sources, Flag: l.Flag, Addrs: l.Addrs,
	}
}

// AllMulti reports whether a new device takes in all multicast.
func (l *Lower) AllMulti() bool { return l.RxFilter != RxNone }

// ownsMAC reports whether the NIC has its parent device's address by default.
func (l *Lower) ownsMAC() bool {
	return l != nil && (l.Kind == vtap.IPVtap || l.Mode == "passthru")
}

func (l *Lower) isIPVtap() bool { return l != nil && l.Kind == vtap.IPVtap }

func (s Spec) validateDevice() error {
	if !formed(s.Model, 64, letters+digits, "._-") {
		return fmt.Errorf("model %q: want the name of a QEMU device such as %s", s.Model, DefaultModel)
	}
	if !s.IsVirtio() {
		switch {
		case s.Queues != 1 && s.Queues != QueuesAuto:
			return fmt.Errorf("model %s has one queue: %d need a virtio model", s.Model, s.Queues)
		case s.Vhost == VhostOn:
			return fmt.Errorf("model %s cannot use vhost-net: only virtio models can", s.Model)
		case s.MTU != 0:
			return fmt.Errorf("model %s cannot announce an MTU: only virtio models can", s.Model)
		}
	}
	if len(s.DeviceOptions) > maxOptions {
		return fmt.Errorf("%d device options: at most %d", len(s.DeviceOptions), maxOptions)
	}
	for _, k := range slices.Sorted(maps.Keys(s.DeviceOptions)) {
		flag, own := ownOptions[k]
		switch {
		case own && flag != "":
			return fmt.Errorf("device option %q is set by %s", k, flag)
		case own:
			return fmt.Errorf("device option %q is set by vmnet", k)
		case !formed(k, 64, letters, digits+"._-"):
			return fmt.Errorf("device option %q: want the name of a property", k)
		case len(s.DeviceOptions[k]) > 255:
			return fmt.Errorf("device option %s: a value of %d bytes", k, len(s.DeviceOptions[k]))
		}
	}
	return nil
}

// IsVirtio reports whether the model is one of virtio's, which alone have queues,
// vhost and an MTU.
func (s Spec) IsVirtio() bool { return IsVirtio(s.Model) }

// IsVirtio reports whether a model is a virtio-net device.
func IsVirtio(model string) bool { return strings.HasPrefix(model, virtioNet) }

// virtioNet begins the names of virtio's models.
const virtioNet = "virtio-net"

// OnOff returns "on" or "off".
func OnOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// FlagName is the ipvtap's flag, named.
func (l *Lower) FlagName() string {
	if l.Flag == "" {
		return "bridge"
	}
	return l.Flag
}

// CheckLibvirt returns an error where libvirt has no words for a part of the Spec.
func (s Spec) CheckLibvirt() error {
	const cure = "(--via monitor can, of which libvirt then knows nothing)"
	switch {
	case s.Lower.isIPVtap():
		return fmt.Errorf(
			"libvirt cannot be given an ipvtap by name: in the host's netns its guest's address would be "+
				"the host's own %s", cure)
	case len(s.DeviceOptions) > 0:
		return fmt.Errorf("libvirt decides the further options of a device %s", cure)
	case s.IsVirtio() && libvirtModels[s.Model] == "":
		return fmt.Errorf("libvirt has no model %s %s", s.Model, cure)
	}
	return nil
}
