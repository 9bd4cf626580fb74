package libvirt

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net"
	"slices"
	"strings"
)

// UserAlias is how a device's alias must begin that is not libvirt's own choice
// (VIR_DOMAIN_USER_ALIAS_PREFIX in src/conf/domain_conf.c).
const UserAlias = "ua-"

// nicAlias is how the alias of a NIC of ours begins.
const nicAlias = UserAlias + "vmnet-"

// Alias is the alias of our NIC with that id. It is the device's id in QEMU as well.
func Alias(nic string) string { return nicAlias + nic }

// AliasNIC is the id of our NIC with that alias; empty where the alias is no NIC's of ours.
// The id is what somebody wrote into XML, and not validated.
func AliasNIC(alias string) (nic string) {
	if nic, ok := strings.CutPrefix(alias, nicAlias); ok {
		return nic
	}
	return ""
}

// Ethernet is an <interface type='ethernet'> on a tap or macvtap that is there already and stays
// there: libvirt opens it by its name (managed='no', since libvirt 5.7), as many times as there are
// queues. It changes neither the device's MAC nor its MTU, and does not set it up. A device is a macvtap to
// libvirt if /dev/tap<ifindex> exists, which it then opens. Of one that is Managed libvirt makes the tap, which goes with
// the guest, gives it a MAC like the guest's and sets it up, on no bridge.
type Ethernet struct {
	Tap      string           // the name of the tap or macvtap, at most 15 bytes; no GeneratedName
	Managed  bool             // libvirt makes the tap; one of that name must not be there
	MAC      net.HardwareAddr // 6 bytes, unicast
	LinkDown bool             // the guest sees no carrier
	Model    string           // empty is "virtio"
	Driver   string           // who serves virtio: "vhost", the kernel, or "qemu"; empty is vhost where there is one
	Queues   int              // 1 to 256; a tap must be multi-queue exactly if it is more than 1. 0 is 1
	MTU      int              // bytes, 68 to 65535, that a virtio guest is told; 0 tells none
	Alias    string           // begins with UserAlias; letters, digits, "-" and "_" follow
}

type ethernetXML struct {
	XMLName xml.Name   `xml:"interface"`
	Type    string     `xml:"type,attr"`
	MAC     nameXML    `xml:"mac"`
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

// XML is the element for [Conn.AttachDevice].
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

func (n Ethernet) validate() error {
	id := func(s string) bool {
		return s != "" && strings.Trim(s, "-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
	}
	switch {
	case n.Tap == "" || len(n.Tap) > 15 || n.Tap == "." || n.Tap == ".." || strings.ContainsAny(n.Tap, "/:%") || !graphic(n.Tap):
		return fmt.Errorf("tap %q: not the name of a device", n.Tap)
	case GeneratedName(n.Tap):
		return fmt.Errorf("tap %q: libvirt makes up such names itself", n.Tap)
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

// generatedNames are what the names begin with that libvirt makes up (VIR_NET_GENERATED_..._PREFIX in src/util/virnetdev.h).
var generatedNames = []string{"vnet", "vif", "macvtap", "macvlan"}

// GeneratedName tells whether a device's name is like those that libvirt makes up for its own. In stored XML it drops
// them; libvirt 9.0 keeps them with managed='no', but whoever looks on would take the device for libvirt's.
func GeneratedName(device string) bool {
	return slices.ContainsFunc(generatedNames, func(prefix string) bool { return strings.HasPrefix(device, prefix) })
}

// graphic tells whether a name is printable ASCII without space, which XML hands on as it is.
func graphic(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
