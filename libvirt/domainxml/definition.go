package domainxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
)

const (
	maxText       = 4 << 20 // bytes of a definition: REMOTE_STRING_MAX in libvirt's remote_protocol.x
	maxInterfaces = 4096    // of a definition; PCI with all its bridges has room for fewer
)

// Definition is the part of a domain's XML that concerns NICs.
type Definition struct {
	Type string // "kvm", "qemu"
	Name string
	UUID UUID
	ID   int32 // -1 while the domain is not running
	CPUs int   // virtual CPUs at the start
	// RunAs is the uid of the domain's QEMU, in libvirtd's user namespace. It is -1 if the XML does
	// not say: while the domain is not running, and in a session.
	RunAs      int
	Interfaces []Interface

	texts    []string // the elements of Interfaces
	metadata metadata
}

// Interface is one <interface> element. Fields that the XML does not set are zero.
type Interface struct {
	Type      string // "ethernet", "bridge", "network", "direct", "user" and so on
	MAC       net.HardwareAddr
	Source    Source
	Target    string // the device on the host; one that libvirt chose is set only while it runs
	Unmanaged bool   // libvirt neither creates nor removes Target (managed='no')
	LinkDown  bool   // the guest sees no carrier
	Isolated  bool   // libvirt isolates the bridge port (<port isolated='yes'/>)
	Model     string // "virtio"
	Driver    string // the virtio backend: "vhost" or "qemu"; "" means vhost if the host has it
	Queues    int    // queue pairs of the driver; 0 means one
	MTU       int    // bytes
	Alias     string // the device's id in QEMU; one that libvirt chose is set only while it runs
	Address   string // on PCI: "0000:01:00.0"
}

// Source is what an interface is connected to. Interface.Type decides which of these fields apply.
type Source struct {
	Bridge  string `xml:"bridge,attr"`
	Network string `xml:"network,attr"`
	Device  string `xml:"dev,attr"`
	Mode    string `xml:"mode,attr"` // "bridge", "vepa", "private", "passthrough"
}

type domainXML struct {
	XMLName    xml.Name       `xml:"domain"`
	Type       string         `xml:"type,attr"`
	ID         *int32         `xml:"id,attr"`
	Others     []xml.Attr     `xml:",any,attr"`
	Name       string         `xml:"name"`
	UUID       string         `xml:"uuid"`
	Metadata   metadataXML    `xml:"metadata"`
	VCPU       vcpuXML        `xml:"vcpu"`
	Interfaces []interfaceXML `xml:"devices>interface"`
	Labels     []labelXML     `xml:"seclabel"`
}

// labelXML names the owner of QEMU if its model is "dac": +UID:+GID (virSecurityDACGenLabel in
// src/security/security_dac.c).
type labelXML struct {
	Model string `xml:"model,attr"`
	Label string `xml:"label"`
}

// runAs returns the uid of the label, or -1 if there is none or it is a user's name.
func (x *domainXML) runAs() int {
	for _, l := range x.Labels {
		owner, ok := strings.CutPrefix(strings.TrimSpace(l.Label), "+")
		uid, _, whole := strings.Cut(owner, ":")
		if n, err := strconv.ParseUint(uid, 10, 31); ok && whole && err == nil && l.Model == "dac" {
			return int(n)
		}
	}
	return -1
}

// vcpuXML is <vcpu current='2'>4</vcpu>: the maximum, and the number at the start.
type vcpuXML struct {
	Current uint16 `xml:"current,attr"`
	Most    string `xml:",chardata"`
}

func (x vcpuXML) count() (int, error) {
	if x.Current > 0 {
		return int(x.Current), nil
	}
	most := strings.TrimSpace(x.Most)
	if most == "" {
		return 1, nil
	}
	n, err := strconv.ParseUint(most, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("number of CPUs %.120q", most)
	}
	return max(int(n), 1), nil
}

type interfaceXML struct {
	Type string `xml:"type,attr"`
	MAC  struct {
		Address string `xml:"address,attr"`
	} `xml:"mac"`
	Source Source `xml:"source"`
	Target struct {
		Device  string `xml:"dev,attr"`
		Managed string `xml:"managed,attr"`
	} `xml:"target"`
	Model struct {
		Type string `xml:"type,attr"`
	} `xml:"model"`
	Driver struct {
		Name   string `xml:"name,attr"`
		Queues uint16 `xml:"queues,attr"`
	} `xml:"driver"`
	Link struct {
		State string `xml:"state,attr"`
	} `xml:"link"`
	Port struct {
		Isolated string `xml:"isolated,attr"`
	} `xml:"port"`
	MTU struct {
		Size uint32 `xml:"size,attr"`
	} `xml:"mtu"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
	Address addressXML `xml:"address"`

	begun, ended int64 // where its start tag and the element end in the text
}

// UnmarshalXML is encoding/xml's.
func (x *interfaceXML) UnmarshalXML(d *xml.Decoder, start xml.StartElement) error {
	type fields interfaceXML // without this method
	x.begun = d.InputOffset()
	err := d.DecodeElement((*fields)(x), &start)
	x.ended = d.InputOffset()
	return err
}

// in returns the element in the text that it was parsed from. A start tag has no other "<".
func (x *interfaceXML) in(text string) string {
	return text[strings.LastIndexByte(text[:x.begun], '<'):x.ended]
}

type addressXML struct {
	Type     string `xml:"type,attr"`
	Domain   string `xml:"domain,attr"`
	Bus      string `xml:"bus,attr"`
	Slot     string `xml:"slot,attr"`
	Function string `xml:"function,attr"`
}

// Parse reads a domain's XML. An entity other than the five of XML itself is an error, so nothing
// expands.
func Parse(text string) (*Definition, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("domain XML of %d bytes, want at most %d", len(text), maxText)
	}
	var x domainXML
	if err := decodeXML(text, &x); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	uuid, err := ParseUUID(strings.TrimSpace(x.UUID))
	if err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	if len(x.Interfaces) > maxInterfaces {
		n := len(x.Interfaces)
		return nil, fmt.Errorf("domain XML: %d interfaces, want at most %d", n, maxInterfaces)
	}
	def := &Definition{
		Type: x.Type, Name: x.Name, UUID: uuid, ID: -1, RunAs: x.runAs(),
		metadata: metadata{text, x.Others, x.Metadata.elements},
	}
	if x.ID != nil {
		def.ID = *x.ID
	}
	if def.CPUs, err = x.VCPU.count(); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	for i, ix := range x.Interfaces {
		nic, err := ix.parse()
		if err != nil {
			return nil, fmt.Errorf("domain XML: interface %d: %w", i+1, err)
		}
		def.Interfaces, def.texts = append(def.Interfaces, nic), append(def.texts, ix.in(text))
	}
	return def, nil
}

// InterfaceText returns the element of the interface with that alias as the definition has it, with
// what Interface leaves out, so that libvirt can get it back. It is empty if there is none.
func (def *Definition) InterfaceText(alias string) string {
	i := slices.IndexFunc(def.Interfaces, func(i Interface) bool { return i.Alias == alias })
	if i < 0 || alias == "" {
		return ""
	}
	return def.texts[i]
}

// decodeXML reads one element, and refuses text after it.
func decodeXML(text string, v any) error {
	d := xml.NewDecoder(strings.NewReader(text))
	if err := d.Decode(v); err != nil {
		return err
	}
	for {
		switch t, err := d.Token(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		default:
			if s, ok := t.(xml.CharData); ok && len(bytes.TrimSpace(s)) == 0 {
				continue
			}
			return errors.New("text follows the element")
		}
	}
}

func (x *interfaceXML) parse() (Interface, error) {
	nic := Interface{
		Type: x.Type, Source: x.Source,
		Target: x.Target.Device, Unmanaged: x.Target.Managed == "no",
		LinkDown: x.Link.State == "down", Isolated: x.Port.Isolated == "yes",
		Model: x.Model.Type, Driver: x.Driver.Name, Queues: int(x.Driver.Queues),
		MTU: int(x.MTU.Size), Alias: x.Alias.Name,
	}
	var err error
	if x.MAC.Address != "" {
		if nic.MAC, err = net.ParseMAC(x.MAC.Address); err != nil {
			return Interface{}, err
		}
	}
	if x.Address.Type == "pci" {
		nic.Address, err = x.Address.pci()
	}
	return nic, err
}

// pci returns the address in the form of Linux and lspci.
func (x *addressXML) pci() (string, error) {
	var n [4]uint64
	for i, part := range []struct {
		text string
		bits int
	}{{x.Domain, 16}, {x.Bus, 8}, {x.Slot, 5}, {x.Function, 3}} {
		if part.text == "" {
			continue
		}
		var err error
		if n[i], err = strconv.ParseUint(part.text, 0, 32); err != nil || n[i]>>part.bits != 0 {
			return "", fmt.Errorf("PCI address %.120q has a part that does not fit into %d bits", part.text, part.bits)
		}
	}
	return fmt.Sprintf("%04x:%02x:%02x.%x", n[0], n[1], n[2], n[3]), nil
}
