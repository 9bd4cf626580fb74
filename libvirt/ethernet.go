package libvirt

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net"
	"strings"
)

// Ethernet is an <interface type='ethernet'> on a tap that is there already and stays there:
// libvirt opens it by its name (managed='no', since libvirt 5.7).
type Ethernet struct {
	Tap    string           // the device's name, at most 15 bytes
	MAC    net.HardwareAddr // 6 bytes, unicast
	Model  string           // empty is "virtio"
	Queues int              // 1 to 256; the tap must be multi-queue exactly if it is more than 1. 0 is 1
	MTU    int              // bytes, 68 to 65535; 0 is the tap's
	Alias  string           // begins with UserAlias; letters, digits, "-" and "_" follow
}

type ethernetXML struct {
	XMLName xml.Name   `xml:"interface"`
	Type    string     `xml:"type,attr"`
	MAC     nameXML    `xml:"mac"`
	Target  targetXML  `xml:"target"`
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
	Managed string `xml:"managed,attr"`
}

type driverXML struct {
	Name   string `xml:"name,attr,omitempty"`
	Queues int    `xml:"queues,attr"`
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
	if n.Queues > 1 {
		x.Driver = &driverXML{Queues: n.Queues}
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
	case len(n.MAC) != 6 || n.MAC[0]&1 != 0 || bytes.Equal(n.MAC, make([]byte, 6)):
		return fmt.Errorf("MAC %q: want a unicast one", n.MAC)
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

// graphic tells whether a name is printable ASCII without space, which XML hands on as it is.
func graphic(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
