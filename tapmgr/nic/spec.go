package nic

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
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
	"vmnet/bridge/portsec"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
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
	// without port security they count only if the switch is that of a user's network.
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

// Config returns the settings of the device that the NIC gets.
func (l *Lower) Config(name string, mac net.HardwareAddr) vtap.Config {
	return vtap.Config{
		Kind: l.Kind, Name: name, Mode: l.Mode, MAC: mac,
		NoPromisc: l.NoPromisc, Sources: l.Sources, Flag: l.Flag, Addrs: l.Addrs,
	}
}

// LowerMAC returns the address that the device on a parent device is made with; nil for the
// parent's. A prepared ipvtap has an address only to say which one the parent device must have.
func (s Spec) LowerMAC() net.HardwareAddr {
	if s.Prepared && s.Lower.isIPVtap() {
		return nil
	}
	return s.MAC
}

// AllMulti reports whether a new device takes in all multicast.
func (l *Lower) AllMulti() bool { return l.RxFilter != RxNone }

// ownsMAC reports whether the NIC has its parent device's address by default.
func (l *Lower) ownsMAC() bool {
	return l != nil && (l.Kind == vtap.IPVtap || l.Mode == "passthru")
}

func (l *Lower) isIPVtap() bool { return l != nil && l.Kind == vtap.IPVtap }

// IsVirtio reports whether the model is one of virtio's, which alone have several queues, vhost and
// an MTU.
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

// UpDown returns "up" or "down".
func UpDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// HasTap reports whether a NIC of that type has a tap on the host: not a macvtap, ipvtap or socket.
func HasTap(kind string) bool { return kind == TypeTap || kind == TypeOVS || kind == TypeRouted }

// FlagName returns the flag of an ipvtap; the empty one means bridge.
func (l *Lower) FlagName() string {
	if l.Flag == "" {
		return "bridge"
	}
	return l.Flag
}

// OwnIPs returns the guest's own addresses, as its record has them. Those of an ipvtap are in its
// record only for port security.
func (s Spec) OwnIPs() []netip.Addr {
	if !s.Lower.isIPVtap() || s.Security.IsZero() {
		return s.IP
	}
	var own []netip.Addr
	for _, p := range s.Lower.Addrs {
		own = append(own, p.Addr())
	}
	return own
}

// Security says which of the guest's frames are dropped.
type Security = portsec.Settings

// InterfaceName returns the name of a NIC's interface: <vm>-<nic> if the kernel accepts that, else
// a cleaned and shortened form with a hash of both. altName is then the full name, if it fits, and
// empty otherwise.
func InterfaceName(vm, nic string) (name, altName string) {
	full := vm + "-" + nic
	if formed(vm, maxName, letters+digits+"_", "-") && len(full) <= maxName {
		return full, ""
	}
	clean := strings.Trim(strings.Map(plainRune, vm), "-")
	clean = clean[:min(len(clean), maxName-1-hashLen)]
	name = strings.TrimLeft(strings.TrimRight(clean, "-")+"-"+shortHash(vm, nic), "-")
	if len(full) <= maxAltName && full != name {
		altName = full
	}
	return name, altName
}

// plainRune keeps what is safe in an interface name everywhere.
func plainRune(r rune) rune {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_':
		return r
	}
	return '-'
}

// formed reports whether s has 1 to most bytes, the first one from first and the others from first
// or more, which are ASCII. A regexp would cost time at every start of the program.
func formed(s string, most int, first, more string) bool {
	return s != "" && len(s) <= most && strings.Contains(first, s[:1]) && strings.Trim(s, first+more) == ""
}

const (
	digits    = "0123456789"
	lowerCase = "abcdefghijklmnopqrstuvwxyz"
	letters   = lowerCase + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// shortHash hashes a list of texts; texts that only join alike give another hash.
func shortHash(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		h.Write([]byte(t))
		h.Write([]byte{0})
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)))[:hashLen]
}

// DefaultMAC returns the guest's address if the Spec has none: always the same on one machine, in
// the range that QEMU uses, 52:54:00.
func DefaultMAC(vm, nic string) net.HardwareAddr {
	return stablemac.New([]byte{0x52, 0x54, 0x00}, vm, nic)
}

// DeviceID returns the id of a NIC's QEMU device. The netdev's id and the getfd names derive from
// it (package qmp), since QMP lists neither.
func DeviceID(nic string) string { return "vmnet-" + nic }

// LibvirtAlias returns libvirt's alias, and so QEMU's id, of a NIC that was handed over by name.
// Libvirt accepts only aliases that begin with "ua-" (virDomainDeviceAliasIsUserAlias in
// src/conf/domain_conf.c).
func LibvirtAlias(nic string) string { return "ua-" + DeviceID(nic) }

// DeviceOf returns the id of the QEMU device of a NIC that was handed over in that way.
func DeviceOf(nic string, via Via) string {
	if via == ViaLibvirt {
		return LibvirtAlias(nic)
	}
	return DeviceID(nic)
}

const (
	hostMACByte = stablemac.HostMACByte

	maxName    = 15  // IFNAMSIZ less its NUL
	maxAltName = 127 // ALTIFNAMSIZ less its NUL
	hashLen    = 6
)

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

// ValidHash reports whether a text can be an optionsHash.
func ValidHash(text string) bool { return text == "" || formed(text, hashLen, letters+digits, "") }

// OptionsHash returns what a record keeps of the rest of a Spec: enough to see that two differ.
func (s Spec) OptionsHash() string {
	var texts []string
	for _, k := range slices.Sorted(maps.Keys(s.DeviceOptions)) {
		texts = append(texts, k, s.DeviceOptions[k])
	}
	if l := s.Lower; l != nil && (l.NoPromisc || l.Flag != "" || len(l.Sources)+len(l.Addrs) > 0) {
		texts = append(texts, fmt.Sprint(l.NoPromisc, l.Flag, l.Sources, l.Addrs))
	}
	if len(texts) == 0 {
		return ""
	}
	return shortHash(texts...)
}
