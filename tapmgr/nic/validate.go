package nic

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
	"vmnet/step"
)

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
// the guest's state, and its device can be made without traffic.
func (s Spec) validatePrepared() error {
	switch {
	case !s.Prepared:
		return nil
	case s.Via == ViaMonitor || s.Persistent:
		return fmt.Errorf("libvirt migrates its guests itself: its hook prepares the NICs that their domains " +
			"declare (vmnet hook install)")
	case s.MAC == nil:
		return fmt.Errorf("a prepared NIC needs the address that the guest has where it comes from: --mac " +
			"(vmnet list shows it there)")
	}
	return nil
}

func (s Spec) validateHost() error {
	switch {
	case s.places() == 0:
		return fmt.Errorf("neither bridge nor network nor parent device nor switch nor uplink is named " +
			"(--bridge, --network, --macvtap, --ipvtap, --switch or --routed)")
	case s.places() > 1:
		return fmt.Errorf("a NIC is either on a bridge, on a network, on a parent device, on a switch or routed")
	case s.Bridge != "" && !brport.ValidName(s.Bridge):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Bridge)
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", s.MTU, minMTU, maxMTU)
	case s.Vhost != VhostAuto && s.Vhost != VhostOn && s.Vhost != VhostOff:
		return fmt.Errorf("vhost %q: want auto, on or off", s.Vhost)
	case s.Via != "" && s.Via != ViaLibvirt && s.Via != ViaMonitor && s.Via != ViaName:
		return fmt.Errorf("via %q: want %s or %s", s.Via, ViaLibvirt, ViaMonitor)
	case s.Device != "" && !brport.ValidName(s.Device):
		return fmt.Errorf("interface name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Device)
	case s.Via == ViaMonitor && s.Persistent:
		return fmt.Errorf("libvirt cannot store a NIC that it does not know (leave out --persistent, or --via monitor)")
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
				"receives (leave out --shape, or use --bridge)")
		}
		if err := s.Switch.validate(s); err != nil {
			return err
		}
	}
	return cmp.Or(s.validateNamed(), s.validateOVS(), s.Port.Validate(), s.Lower.validate(s.LowerMAC()),
		s.validateSecurity(), s.validateInbound(), s.Rates.Validate())
}

// onOwn reports whether the NIC is to be on the switch of a network of the caller, by way of By,
// and the switch is not known yet.
func (s Spec) onOwn() bool { return s.Network != "" && s.Switch != nil && s.Switch.Name == "" }

// CheckPlace returns an error that matches ErrInvalid if the NIC's network was to be one of the
// caller, and is not.
func (s Spec) CheckPlace() error {
	if s.onOwn() {
		return step.WithStage(ErrInvalid, fmt.Errorf("by %s: the caller has no network %s, and one of root has no "+
			"switch (without --via)", s.Switch.By, s.Network))
	}
	return nil
}

// places returns how many of the places in which a NIC can be are named.
func (s Spec) places() (n int) {
	for _, named := range []bool{
		s.Bridge != "", s.Network != "", s.Routed != "", s.Lower != nil, s.Switch != nil && !s.onOwn(),
	} {
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
		return fmt.Errorf("parent device name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", l.Device)
	case !slices.Contains([]string{RxAllMulti, RxNone, RxMirror}, l.RxFilter):
		return fmt.Errorf("rx filter %q: want %s, %s or %s", l.RxFilter, RxAllMulti, RxNone, RxMirror)
	}
	return l.Config("x", mac).Validate()
}

// minIPv6MTU is the least that IPv6 works with, in bytes (RFC 8200).
const minIPv6MTU = 1280

// validateNetwork checks the network or uplink, and the guest's own addresses.
func (s Spec) validateNetwork() error {
	switch {
	case s.Routed != "" && !brport.ValidName(s.Routed):
		return fmt.Errorf("uplink name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Routed)
	case s.Routed != "" && len(s.IP) == 0:
		return errors.New("a routed NIC needs an address of the LAN, by which packets find it (--ip)")
	case s.Routed != "" && s.MTU != 0 && s.MTU < minIPv6MTU && slices.ContainsFunc(s.IP, netip.Addr.Is6):
		return fmt.Errorf("MTU %d: IPv6 needs at least %d bytes", s.MTU, minIPv6MTU)
	case s.Network != "" && !brport.ValidName(s.Network):
		return fmt.Errorf("network name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Network)
	case len(s.IP) > 0 && s.Network == "" && s.Routed == "" && s.Switch == nil && s.Security.IsZero():
		return errors.New("a guest's own addresses need a network, an uplink or port security " +
			"(--ip with --network, --routed or --port-security)")
	case len(s.IP) > maxIPs:
		return fmt.Errorf("%d addresses: at most %d", len(s.IP), maxIPs)
	}
	for i, a := range s.IP {
		switch {
		case !validIP(a):
			return fmt.Errorf("IP %s: want the address of one guest, without a zone", a)
		case s.Routed != "" && a.IsLinkLocalUnicast():
			return fmt.Errorf("IP %s: link-local addresses are not routed", a)
		case slices.Contains(s.IP[:i], a):
			return fmt.Errorf("IP %s is given twice", a)
		}
	}
	return nil
}

// validIP reports whether one guest can have an address: it is of one host, and written in one way.
func validIP(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

const (
	maxIfaceID    = 64  // bytes: the record has to hold it
	maxSocketPath = 107 // sun_path of unix(7) less its NUL
)

// validateOVS checks what concerns a bridge of Open vSwitch only. Whether the bridge is one, the
// host knows.
func (s Spec) validateOVS() error {
	switch {
	case s.IfaceID == "" && s.OVSDB == "":
		return nil
	case s.Bridge == "":
		return errors.New("--iface-id and --ovsdb are for a NIC on a bridge of Open vSwitch (--bridge)")
	case s.IfaceID != "" && !formed(s.IfaceID, maxIfaceID, letters+digits, "_.:-"):
		return fmt.Errorf("iface-id %.80q: want 1 to %d letters, digits and _.:-, a letter or digit first",
			s.IfaceID, maxIfaceID)
	case s.OVSDB != "" && !socketPath(s.OVSDB):
		return fmt.Errorf(
			"ovsdb %.120q: want a socket's absolute and clean path of at most %d bytes (without //, . and ..)",
			s.OVSDB, maxSocketPath)
	}
	return nil
}

// socketPath reports whether p is the clean path of a socket. It may come from a user, and root
// connects to it.
func socketPath(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && len(p) <= maxSocketPath &&
		!strings.ContainsFunc(p, unicode.IsControl)
}

// anyMAC stands for the address of a NIC that its parent device decides.
var anyMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0}

// CheckSecurity returns an error if the port security is inconsistent or lacks addresses, or if
// what may come in cannot be filtered. It matches ErrInvalid.
func (s Spec) CheckSecurity() error {
	return step.WithStage(ErrInvalid, cmp.Or(s.validateSecurity(), s.validateInbound()))
}

func (s Spec) validateSecurity() error {
	c := s.Security
	switch {
	case c.IsZero() && len(c.EtherTypes) > 0:
		return errors.New("EtherTypes that pass need port security, which drops others " +
			"(--allow-ethertype with --port-security)")
	case c.IsZero() && len(c.Nets) > 0:
		return errors.New("a network as an address of the guest needs port security (--ip with --port-security)")
	case c.IsZero():
		return nil
	case c.Checks.Has(portsec.VLAN) && len(s.Port.Trunk) > 0:
		return fmt.Errorf("port security vlan drops the tagged frames that --trunk is for (--port-security %s)",
			c.Checks&^portsec.VLAN)
	case s.Lower != nil && s.Lower.Kind == vtap.IPVtap && len(s.OwnIPs()) > maxIPs:
		return fmt.Errorf("%d addresses: with port security at most %d", len(s.OwnIPs()), maxIPs)
	case len(c.Nets) > portsec.MaxNets:
		return fmt.Errorf("%d networks of addresses: at most %d", len(c.Nets), portsec.MaxNets)
	}
	mac := s.MAC
	if mac == nil {
		mac = anyMAC
	}
	return c.Config(mac, s.OwnIPs()).Validate()
}

// validateInbound checks what may come in to the guest.
func (s Spec) validateInbound() error {
	if s.Switch != nil && !s.AllowIn.IsZero() {
		return errors.New("a userspace switch keeps no state of connections (--allow-in with --bridge, --network, " +
			"--routed, --macvtap or --ipvtap; or filter in the guest)")
	}
	return s.AllowIn.Validate()
}

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
			return fmt.Errorf("device option %s: a value of %d bytes, want at most 255", k, len(s.DeviceOptions[k]))
		}
	}
	return nil
}

// CheckLibvirt returns an error where libvirt has no words for a part of the Spec.
func (s Spec) CheckLibvirt() error {
	const cure = "(use --via monitor; libvirt then does not know the NIC)"
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

// libvirtModels are the models that libvirt calls by other names than QEMU (virDomainNetModel in
// src/conf/domain_conf.c, qemuBuildVirtioDevProps in src/qemu/qemu_command.c).
var libvirtModels = map[string]string{
	"virtio-net-pci":                  "virtio",
	"virtio-net-pci-transitional":     "virtio-transitional",
	"virtio-net-pci-non-transitional": "virtio-non-transitional",
}

// LibvirtModel returns libvirt's name for a QEMU model.
func LibvirtModel(model string) string { return cmp.Or(libvirtModels[model], model) }

// ModelOf returns QEMU's name for a libvirt model.
func ModelOf(libvirtModel string) string {
	for qemu, libvirt := range libvirtModels {
		if libvirt == libvirtModel {
			return qemu
		}
	}
	return libvirtModel
}

// validateNamed checks a NIC whose VMM opens it by its name: that must be a tap, and whatever the
// VMM decides of its device is not known.
func (s Spec) validateNamed() error {
	switch {
	case s.Via != ViaName:
		return nil
	case s.Lower != nil:
		return errors.New("a VMM opens a tap by its name: --bridge, --network or --routed says where that is")
	case s.Switch != nil:
		return errors.New("a switch has its ports' taps itself (vmnet switch run --tap makes one)")
	case s.Queues == QueuesAuto:
		return errors.New("how many processors the VMM's guest has is not known: want a number of queues")
	case s.LinkDown, s.Prepared, s.Persistent, s.MTU != 0, len(s.DeviceOptions) > 0, s.Vhost == VhostOn:
		return errors.New("link, MTU, vhost and device are the VMM's own settings")
	}
	return nil
}
