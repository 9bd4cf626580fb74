package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// maxInterfaces bounds a definition. PCI, with all its bridges, has room for less.
const maxInterfaces = 4096

// Definition is what a domain's XML (formatdomain) says, as far as NICs are concerned.
type Definition struct {
	Type       string // "kvm", "qemu"
	Name       string
	UUID       UUID
	ID         int32 // -1 where it does not run
	CPUs       int   // virtual ones that it starts with
	RunAs      int   // the uid of its QEMU, in libvirt's user namespace; -1 where that is not told: of one that does not run, and in a session
	Interfaces []Interface

	metadata metadata
}

// Interface is one <interface>. What the XML does not say is zero.
type Interface struct {
	Type      string // "ethernet", "bridge", "network", "direct", "user" and so on
	MAC       net.HardwareAddr
	Source    Source
	Target    string // the device on the host; of libvirt's choosing only while the domain runs
	Unmanaged bool   // libvirt neither makes nor removes Target (managed='no')
	LinkDown  bool   // as the guest sees it
	Isolated  bool   // libvirt has the bridge port isolated (<port isolated='yes'/>)
	Model     string // "virtio"
	Driver    string // who serves virtio: "vhost", the kernel, or "qemu"; empty is vhost where there is one
	Queues    int    // the driver's queue pairs; 0 is one
	MTU       int    // bytes
	Alias     string // the device's id in QEMU; of libvirt's choosing only while the domain runs
	Address   string // on PCI: "0000:01:00.0"
}

// Source is what an interface is connected to; its type says which of these count.
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

// labelXML is, of the driver dac, who runs QEMU: +UID:+GID (virSecurityDACGenLabel in src/security/security_dac.c).
type labelXML struct {
	Model string `xml:"model,attr"`
	Label string `xml:"label"`
}

// runAs is the uid of the label; -1 for none, and where a name stands for it.
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

// vcpuXML is <vcpu current='2'>4</vcpu>, most of all and those it starts with.
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
		return 0, fmt.Errorf("number of CPUs %q", cut(most))
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
}

type addressXML struct {
	Type     string `xml:"type,attr"`
	Domain   string `xml:"domain,attr"`
	Bus      string `xml:"bus,attr"`
	Slot     string `xml:"slot,attr"`
	Function string `xml:"function,attr"`
}

// ParseDefinition reads the XML of a domain. Entities other than XML's own five are an error,
// so nothing expands.
func ParseDefinition(text string) (*Definition, error) {
	if len(text) > maxString {
		return nil, fmt.Errorf("domain XML of %d bytes, libvirt's own end at %d", len(text), maxString)
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
		return nil, fmt.Errorf("domain XML: %d interfaces, at most %d are understood", len(x.Interfaces), maxInterfaces)
	}
	def := &Definition{Type: x.Type, Name: x.Name, UUID: uuid, ID: -1, RunAs: x.runAs(), metadata: metadata{text, x.Others, x.Metadata.elements}}
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
		def.Interfaces = append(def.Interfaces, nic)
	}
	return def, nil
}

// decodeXML reads one element and nothing behind it.
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
			return errors.New("something follows the element")
		}
	}
}

func (x *interfaceXML) parse() (Interface, error) {
	nic := Interface{
		Type: x.Type, Source: x.Source, Target: x.Target.Device, Unmanaged: x.Target.Managed == "no", LinkDown: x.Link.State == "down", Isolated: x.Port.Isolated == "yes",
		Model: x.Model.Type, Driver: x.Driver.Name, Queues: int(x.Driver.Queues), MTU: int(x.MTU.Size), Alias: x.Alias.Name,
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

// pci is the address as Linux and lspci write it.
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
			return "", fmt.Errorf("PCI address %q has no part of %d bits in it", cut(part.text), part.bits)
		}
	}
	return fmt.Sprintf("%04x:%02x:%02x.%x", n[0], n[1], n[2], n[3]), nil
}
