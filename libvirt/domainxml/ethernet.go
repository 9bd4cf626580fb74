package domainxml

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net"
	"slices"
	"strings"
)

// UserAlias is the prefix of device aliases that users choose; libvirt keeps all others for itself
// (VIR_DOMAIN_USER_ALIAS_PREFIX in src/conf/domain_conf.c).
const UserAlias = "ua-"

// nicAlias is the prefix of the aliases of vmnet's NICs.
const nicAlias = UserAlias + "vmnet-"

// Alias returns the alias of vmnet's NIC with that id. It is also the device's id in QEMU.
func Alias(nic string) string { return nicAlias + nic }

// AliasNIC returns the id of vmnet's NIC with that alias, or "" if the alias is not vmnet's.
// The id comes from XML that anybody may have written, and is not validated.
func AliasNIC(alias string) (nic string) {
	if nic, ok := strings.CutPrefix(alias, nicAlias); ok {
		return nic
	}
	return ""
}

// Ethernet is an <interface type='ethernet'>. Unless Managed is set, the tap or macvtap must exist
// and outlives the guest (managed='no', since libvirt 5.7): libvirt opens it by name, once per
// queue, and changes neither its MAC, its MTU nor its state. libvirt takes a device for a macvtap
// if /dev/tap<ifindex> exists, and then opens that.
//
// If Managed is set, libvirt creates the tap with a MAC derived from the guest's, brings it up, and
// puts it on no bridge. The tap ends with the guest. With a Parent as well, libvirt creates a
// macvtap (type='direct') and removes it when the guest ends.
type Ethernet struct {
	Tap      string           // name of the tap or macvtap, at most 15 bytes; not a GeneratedName
	Managed  bool             // libvirt creates the device; no device of that name may exist
	Parent   string           // parent device of a macvtap that is Managed; empty for a tap
	Mode     string           // of such a macvtap: "bridge", "vepa", "private" or "passthrough"
	MAC      net.HardwareAddr // 6 bytes, unicast
	LinkDown bool             // the guest sees no carrier
	Model    string           // "" means "virtio"
	Driver   string           // virtio backend: "vhost" or "qemu"; "" means vhost if the host has it
	Queues   int              // 1 to 256, 0 means 1; over 1 needs a multi-queue tap, and vice versa
	MTU      int              // bytes, 68 to 65535, announced to a virtio guest; 0 announces none
	Alias    string           // UserAlias followed by letters, digits, "-" and "_"
}

type ethernetXML struct {
	XMLName xml.Name   `xml:"interface"`
	Type    string     `xml:"type,attr"`
	MAC     nameXML    `xml:"mac"`
	Source  *sourceXML `xml:"source"`
	Target  targetXML  `xml:"target"`
	Link    *linkXML   `xml:"link"`
	Model   nameXML    `xml:"model"`
	Driver  *driverXML `xml:"driver"`
	MTU     *mtuXML    `xml:"mtu"`
	Alias   nameXML    `xml:"alias"`
}

type nameXML struct {
	Address string `xml:"address,attr,omitempty"`
	Type    string `xml:"type,attr,omitempty"`
	Name    string `xml:"name,attr,omitempty"`
}

type sourceXML struct {
	Device string `xml:"dev,attr"`
	Mode   string `xml:"mode,attr"`
}

type targetXML struct {
	Device  string `xml:"dev,attr"`
	Managed string `xml:"managed,attr,omitempty"`
}

type linkXML struct {
	State string `xml:"state,attr"`
}

type driverXML struct {
	Name   string `xml:"name,attr,omitempty"`
	Queues int    `xml:"queues,attr,omitempty"`
}

type mtuXML struct {
	Size int `xml:"size,attr"`
}

// XML returns the element in the form that libvirt's attach and detach calls accept.
func (n Ethernet) XML() (string, error) {
	if n.Model == "" {
		n.Model = "virtio"
	}
	if err := n.validate(); err != nil {
		return "", fmt.Errorf("interface XML: %w", err)
	}
	x := ethernetXML{
		Type: "ethernet", MAC: nameXML{Address: n.MAC.String()}, Target: targetXML{n.Tap, "no"},
		Model: nameXML{Type: n.Model}, Alias: nameXML{Name: n.Alias},
	}
	if n.Managed {
		x.Target.Managed = ""
	}
	if n.Parent != "" {
		x.Type, x.Source = "direct", &sourceXML{n.Parent, n.Mode}
	}
	if n.LinkDown {
		x.Link = &linkXML{"down"}
	}
	if n.Queues > 1 || n.Driver != "" {
		x.Driver = &driverXML{Name: n.Driver}
	}
	if n.Queues > 1 {
		x.Driver.Queues = n.Queues
	}
	if n.MTU > 0 {
		x.MTU = &mtuXML{n.MTU}
	}
	text, err := xml.Marshal(x)
	return string(text), err
}

// directModes are those of a macvtap that libvirt creates (virNetDevMacVLanMode in
// src/util/virnetdevmacvlan.c).
var directModes = []string{"bridge", "vepa", "private", "passthrough"}

func (n Ethernet) validate() error {
	id := func(s string) bool {
		return s != "" && strings.Trim(s, "-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
	}
	switch {
	case !deviceName(n.Tap):
		return fmt.Errorf("tap %q: want the name of a device", n.Tap)
	case n.Parent != "" && !deviceName(n.Parent):
		return fmt.Errorf("parent %q: want the name of a device", n.Parent)
	case n.Parent != "" && !n.Managed:
		return fmt.Errorf("parent %s: libvirt creates a macvtap on it only if the device is managed", n.Parent)
	case n.Parent != "" && !slices.Contains(directModes, n.Mode):
		return fmt.Errorf("mode %q: want %s", n.Mode, strings.Join(directModes, ", "))
	case GeneratedName(n.Tap):
		return fmt.Errorf("tap %q: libvirt generates such names itself", n.Tap)
	case len(n.MAC) != 6 || n.MAC[0]&1 != 0 || bytes.Equal(n.MAC, make([]byte, 6)):
		return fmt.Errorf("MAC %q: want a unicast one", n.MAC)
	case n.Driver != "" && n.Driver != "vhost" && n.Driver != "qemu":
		return fmt.Errorf("driver %q: want vhost or qemu", n.Driver)
	case n.Queues < 0 || n.Queues > 256:
		return fmt.Errorf("%d queues: want 1 to 256", n.Queues)
	case n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535):
		return fmt.Errorf("MTU %d: want 68 to 65535", n.MTU)
	case !strings.HasPrefix(n.Alias, UserAlias) || !id(n.Alias[len(UserAlias):]):
		return fmt.Errorf("alias %q: want %s and then letters, digits, - and _", n.Alias, UserAlias)
	case !id(n.Model):
		return fmt.Errorf("model %q: want a name like virtio", n.Model)
	}
	return nil
}

// generatedNames are the prefixes of names that libvirt generates (VIR_NET_GENERATED_..._PREFIX in
// src/util/virnetdev.h).
var generatedNames = []string{"vnet", "vif", "macvtap", "macvlan"}

// GeneratedName reports whether a device's name has the form of the names that libvirt generates.
// libvirt drops such names from stored XML. libvirt 9.0 keeps them with managed='no', but people
// would take the device for libvirt's own.
func GeneratedName(device string) bool {
	return slices.ContainsFunc(generatedNames, func(prefix string) bool { return strings.HasPrefix(device, prefix) })
}

func deviceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/:%") && graphic(s)
}

// graphic reports whether a name is printable ASCII without spaces, which XML keeps unchanged.
func graphic(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
