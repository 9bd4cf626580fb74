// Package declared reads which NICs of a libvirt domain vmnet manages: an element in the domain's
// <metadata> says what vmnet does for its <interface>s.
//
//	<vmnet:nics xmlns:vmnet="urn:vmnet:nics:1">
//	  <vmnet:nic id="net0" bridge="br0" vlan="10" isolated="yes"/>
//	  <vmnet:nic id="net1" macvtap="eth0" mode="passthru"/>
//	  <vmnet:nic id="net2" network="lab" ip="10.66.0.20"/>
//	  <vmnet:nic mac="52:54:00:00:00:03" isolated="yes"/>
//	</vmnet:nics>
//
// A NIC with bridge, network, routed or macvtap is vmnet's: on a tap that libvirt makes and vmnet
// puts in its place, on a macvtap that libvirt makes (type='direct') and vmnet sets up, or on a
// device that vmnet makes before the guest starts and libvirt opens by its name (managed='no'). A
// NIC with none of them is libvirt's: vmnet sets the options of its bridge port for which libvirt
// has no words.
// The attributes have the names of the flags of vmnet attach. Everything else about a NIC is in its
// <interface>.
package declared

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

const (
	// Namespace is the namespace of the element in a domain's <metadata>.
	Namespace = "urn:vmnet:nics:1"
	// Prefix is the customary prefix for it.
	Prefix = "vmnet"
)

// NIC is a declared NIC and its <interface>.
type NIC struct {
	ID        string              // may be empty unless Made
	MAC       net.HardwareAddr    // of the guest's device; nil: not in the XML yet, libvirt will choose one
	Interface domainxml.Interface // to which it belongs; zero if Absent
	Made      bool                // vmnet makes the device, or puts it in its place
	Spec      nic.Spec            // of such a device
	Port      brport.Settings     // settings of the bridge port
}

// Place returns the bridge, network, uplink or parent device of a made device; empty for others.
func (n NIC) Place() string {
	return n.Spec.Source()
}

// Absent reports whether the domain has no such interface, so there is nothing to make: somebody
// has removed the interface but not the declaration, or vmnet was killed between the two. A
// starting guest misses nothing then.
func (n NIC) Absent() bool { return n.Made && n.Interface.Type == "" }

// Adopted reports whether libvirt makes the NIC's device, which vmnet then sets up as declared.
func (n NIC) Adopted() bool { return n.Made && !n.Absent() && !n.Interface.Unmanaged }

// Label names the NIC in messages.
func (n NIC) Label() string { return cmp.Or(n.ID, n.MAC.String()) }

// Parse reads the declared NICs of a domain; without such an element there are none. Anything
// unknown or impossible is an error: no declaration is ignored, except a NIC that is Absent.
func Parse(def *domainxml.Definition) ([]NIC, error) {
	all, err := elements(def)
	if err != nil {
		return nil, err
	}
	var nics []NIC
	taken := map[int]string{} // by index of the interface
	for _, attrs := range all {
		nic, err := parseNIC(def, attrs, taken)
		if err != nil {
			return nil, fmt.Errorf("nic %s: %w", attrs.label(), err)
		}
		nics = append(nics, nic)
	}
	return nics, mistaken(def, nics, taken)
}

// elements returns the NICs that a domain's metadata declares, as written; nil without such an
// element.
func elements(def *domainxml.Definition) ([]attributes, error) {
	text, ok := def.Metadata(Namespace)
	if !ok {
		return nil, nil
	}
	all, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", Namespace, err)
	}
	return all, nil
}

// mistaken separates an Absent NIC from one whose id differs from the id of its intended interface.
func mistaken(def *domainxml.Definition, nics []NIC, taken map[int]string) error {
	for i, x := range def.Interfaces {
		if _, known := taken[i]; known || x.Type != "ethernet" && x.Type != direct ||
			domainxml.AliasNIC(x.Alias) == "" {
			continue
		}
		for _, n := range nics {
			if n.Absent() {
				return fmt.Errorf("nic %q: no interface has <alias name='%s'/> (the one with %s is not declared)",
					n.ID, domainxml.Alias(n.ID), x.Alias)
			}
		}
	}
	return nil
}

func parseNIC(def *domainxml.Definition, attrs attributes, taken map[int]string) (NIC, error) {
	n, err := attrs.nic()
	if err != nil {
		return NIC{}, err
	}
	i, err := find(def.Interfaces, n)
	if errors.Is(err, errAbsent) {
		return n, nil
	}
	if err != nil {
		return NIC{}, err
	}
	if other, twice := taken[i]; twice {
		return NIC{}, fmt.Errorf("its interface already belongs to nic %s", other)
	}
	taken[i] = attrs.label()
	n.Interface = def.Interfaces[i]
	n.MAC = n.Interface.MAC
	if !n.Made {
		return n, n.onTapOfLibvirt()
	}
	n.specify(def.Name)
	return n, n.handedOver(def.Name)
}

// errAbsent is the error for a NIC whose device vmnet would make, without an interface.
var errAbsent = errors.New("the domain has no such interface")

// find returns the index of the NIC's interface. If the NIC has both id and MAC, the id counts: a
// clone of the guest keeps its aliases and gets other MACs. The MAC must not be another interface's
// then.
func find(all []domainxml.Interface, n NIC) (int, error) {
	byID, byMAC := -1, -1
	for i, x := range all {
		if n.ID != "" && domainxml.AliasNIC(x.Alias) == n.ID {
			if byID >= 0 {
				return 0, fmt.Errorf("two interfaces have the alias %s", x.Alias)
			}
			byID = i
		}
		if n.MAC != nil && bytes.Equal(x.MAC, n.MAC) {
			if byMAC >= 0 {
				return 0, fmt.Errorf("two interfaces have the MAC %s (name one by id=)", n.MAC)
			}
			byMAC = i
		}
	}
	switch {
	case n.ID == "" && byMAC < 0:
		return 0, fmt.Errorf("no interface has the MAC %s%s", n.MAC, ofClone)
	case n.ID == "":
		return byMAC, nil
	case byID < 0 && byMAC < 0 && n.Made:
		return 0, errAbsent
	case byID < 0 && n.Made:
		return 0, fmt.Errorf("no interface has <alias name='%s'/>", domainxml.Alias(n.ID))
	case byID < 0 && n.MAC == nil:
		return 0, fmt.Errorf("no interface has <alias name='%s'/> (or name it by mac=)", domainxml.Alias(n.ID))
	case byID >= 0 && (byMAC < 0 || byID == byMAC):
		return byID, nil
	case byID >= 0:
		return 0, fmt.Errorf("the interface with <alias name='%s'/> has the MAC %s, and another one %s",
			domainxml.Alias(n.ID), all[byID].MAC, n.MAC)
	case byMAC < 0:
		return 0, fmt.Errorf("no interface has the MAC %s%s", n.MAC, ofClone)
	}
	return byMAC, nil
}

// ofClone is a hint for a MAC that is not found.
const ofClone = " (a clone of a guest has other MACs: use id=, with <alias name='ua-vmnet-ID'/> in the interface)"

// onTapOfLibvirt checks an interface whose tap libvirt makes.
func (n NIC) onTapOfLibvirt() error {
	switch n.Interface.Type {
	case "bridge", "network":
		return nil
	}
	return fmt.Errorf(
		"its interface has type %q, which has no bridge port (use type bridge or network, or add bridge= or macvtap=)",
		n.Interface.Type)
}

// handedOver checks an interface that vmnet puts in its place.
func (n NIC) handedOver(guest string) error {
	x := n.Interface
	device := func() string { name, _ := nic.InterfaceName(guest, n.ID); return name }
	switch {
	case x.Type == direct && n.Spec.Lower != nil:
		return n.asDirect(guest)
	case x.Type != "ethernet":
		return fmt.Errorf("vmnet connects it: its interface must be <interface type='ethernet'>, not %q", x.Type)
	case n.Adopted() && n.Spec.Lower == nil:
		return n.Spec.Validate()
	case !x.Unmanaged || x.Target == "" && n.Spec.Lower != nil:
		return fmt.Errorf(
			"the macvtap's name is missing, as after virt-clone (add <target dev='%s' managed='no'/> to its interface: virsh edit %s)",
			device(), guest)
	case x.Target == "":
		return fmt.Errorf(
			"the device's name is missing, as after virt-clone (remove <target managed='no'/> from its interface, and libvirt makes the tap: virsh edit %s)",
			guest)
	case domainxml.GeneratedName(x.Target):
		return fmt.Errorf("device %s: libvirt drops names of this form, which it makes itself (choose another)",
			x.Target)
	}
	return n.Spec.Validate()
}

// direct is the type of an interface for which libvirt makes a macvtap.
const direct = "direct"

// asDirect checks that libvirt makes the declared macvtap, or one that can become it: the kernel
// changes no mode into or out of passthru (macvlan_changelink in drivers/net/macvlan.c).
func (n NIC) asDirect(guest string) error {
	source, l := n.Interface.Source, n.Spec.Lower
	switch {
	case source.Device != l.Device:
		return fmt.Errorf("its interface is on %q, and macvtap=%q: name the same parent device (virsh edit %s)",
			source.Device, l.Device, guest)
	case (source.Mode == "passthrough") != (l.Mode == "passthru"):
		return fmt.Errorf(
			"its interface has mode %q, and mode=%q: the kernel changes a macvtap neither into passthru nor out of it (virsh edit %s)",
			source.Mode, l.Mode, guest)
	case l.NoPromisc:
		return fmt.Errorf(
			"nopromisc needs a macvtap that vmnet makes: <interface type='ethernet'> with <target dev=... managed='no'/> (virsh edit %s)",
			guest)
	}
	return n.Spec.Validate()
}

// specify completes the Spec from the interface.
func (n *NIC) specify(guest string) {
	x, s := n.Interface, &n.Spec
	s.VM, s.NIC, s.Device, s.Via = guest, n.ID, x.Target, nic.ViaLibvirt
	s.MAC, s.MTU, s.Queues = x.MAC, x.MTU, max(x.Queues, 1)
	s.Model, s.LinkDown = nic.ModelOf(x.Model), x.LinkDown
	s.Vhost = nic.VhostAuto
	if x.Driver == "qemu" {
		s.Vhost = nic.VhostOff
	}
}

// names joins names for messages: "a, b or c".
func names(all []string) string {
	return strings.Join(all[:len(all)-1], ", ") + " or " + all[len(all)-1]
}
