package declared

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/libvirt/domainxml"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// maxNICs is the most nics of an element. PCI has room for less.
const maxNICs = 256

// The attributes for what a device is attached to and for the settings of its port. In an element
// they follow id and mac.
var (
	lowerNames = []string{"mode", "source-mac", "nopromisc", "rx-filter"} // need macvtap
	portNames  = []string{"vlan", "trunk", "native", "isolated", "hairpin", "no-learning", "no-flood", "forward"}
	placeNames = []string{"bridge", "network", "routed", "macvtap"} // at most one of them
	ovsNames   = []string{"iface-id", "ovsdb"}                      // need bridge
	// of a device that vmnet makes
	securityNames = []string{"port-security", "allow-ethertype", "allow-in"}
	rateNames     = []string{"rate-up", "rate-down", "burst", "shape"}
	allNames      = slices.Concat([]string{"id", "mac"}, placeNames, []string{"ip"}, ovsNames, lowerNames,
		securityNames, rateNames, portNames)
)

// refused are the flags of vmnet attach that a libvirt NIC cannot have.
var refused = []string{"ipvtap", "flag"}

// An attribute is one of a nic; attributes are all of one nic, as written.
type (
	attribute  struct{ name, value string }
	attributes []attribute
)

// decode parses an element, which must declare all its namespaces.
func decode(text string) ([]attributes, error) {
	d := xml.NewDecoder(strings.NewReader(text))
	root, err := next(d)
	if err != nil {
		return nil, err
	}
	start, ok := root.(xml.StartElement)
	if !ok || start.Name != (xml.Name{Space: Namespace, Local: "nics"}) {
		return nil, errors.New("the element is not nics")
	}
	if attrs, err := plain(start.Attr); err != nil || len(attrs) > 0 {
		return nil, cmp.Or(err, errors.New("nics has no attributes"))
	}
	var all []attributes
	for {
		token, err := next(d)
		if err != nil {
			return nil, err
		}
		start, ok := token.(xml.StartElement)
		if !ok { // the end of the element
			return all, nil
		}
		attrs, err := decodeNIC(d, start)
		if err != nil {
			return nil, fmt.Errorf("nic %s: %w", attrs.label(), err)
		}
		if all = append(all, attrs); len(all) > maxNICs {
			return nil, fmt.Errorf("more than %d elements nic", maxNICs)
		}
	}
}

func decodeNIC(d *xml.Decoder, start xml.StartElement) (attributes, error) {
	if start.Name != (xml.Name{Space: Namespace, Local: "nic"}) {
		return nil, fmt.Errorf("element %q is not known: want nic, in namespace %s", start.Name.Local, Namespace)
	}
	attrs, err := plain(start.Attr)
	if err != nil {
		return attrs, err
	}
	inside, err := next(d)
	if _, ends := inside.(xml.EndElement); err == nil && !ends {
		err = errors.New("it contains elements: it takes attributes only")
	}
	return attrs, err
}

// next returns the next start or end of an element. Text is an error; white space and comments are
// skipped.
func next(d *xml.Decoder) (xml.Token, error) {
	for {
		token, err := d.Token()
		switch t := token.(type) {
		case nil:
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		case xml.StartElement, xml.EndElement:
			return token, nil
		case xml.CharData:
			if strings.TrimSpace(string(t)) != "" {
				return nil, fmt.Errorf("text %.40q: it takes attributes only", t)
			}
		}
	}
}

// plain returns the attributes without namespace, each of which may occur once. It skips
// declarations of namespaces.
func plain(all []xml.Attr) (attributes, error) {
	var attrs attributes
	for _, a := range all {
		switch {
		case a.Name.Space == "xmlns" || a.Name.Space == "" && a.Name.Local == "xmlns":
			continue
		case a.Name.Space != "":
			return attrs, fmt.Errorf("attribute %q has a namespace: vmnet's attributes have none", a.Name.Local)
		case attrs.has(a.Name.Local):
			return attrs, fmt.Errorf("attribute %q occurs twice", a.Name.Local)
		}
		attrs = append(attrs, attribute{a.Name.Local, a.Value})
	}
	return attrs, nil
}

func (a attributes) get(name string) string {
	for _, x := range a {
		if x.name == name {
			return x.value
		}
	}
	return ""
}

func (a attributes) has(names ...string) bool {
	return slices.ContainsFunc(a, func(x attribute) bool { return slices.Contains(names, x.name) })
}

// label names the nic in messages.
func (a attributes) label() string {
	if name := cmp.Or(a.get("id"), a.get("mac")); name != "" {
		return fmt.Sprintf("%.40q", name)
	}
	return "without id and mac"
}

// nic converts the attributes to a NIC, without its interface.
func (a attributes) nic() (NIC, error) {
	if err := a.check(); err != nil {
		return NIC{}, err
	}
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags := nicflags.AddNIC(fs)
	n := NIC{Made: a.has(placeNames...)}
	for _, x := range a {
		if err := n.take(fs, x); err != nil {
			return NIC{}, fmt.Errorf("attribute %s=%q: %w", x.name, x.value, err)
		}
	}
	var err error
	if n.Spec, err = flags.Spec(); err != nil {
		return NIC{}, fmt.Errorf("attributes ip, %s: %w", strings.Join(lowerNames, ", "), err)
	}
	if err := n.Spec.CheckSecurity(); err != nil {
		return NIC{}, fmt.Errorf("attributes ip, mac, %s: %w", strings.Join(securityNames, ", "), err)
	}
	n.Port = n.Spec.Port
	if !n.Made {
		n.Spec = nic.Spec{}
	}
	return n, n.Port.Validate()
}

// check refuses attributes that are missing, unknown or do not go together.
func (a attributes) check() error {
	for _, x := range a {
		switch {
		case slices.Contains(refused, x.name):
			return fmt.Errorf(
				"attribute %q: libvirt cannot take an %s by name: in the host's netns the guest's address would be "+
					"the host's (vmnet attach --via monitor)",
				x.name, vtap.IPVtap)
		case !slices.Contains(allNames, x.name):
			return fmt.Errorf("attribute %q is not known: want %s", x.name, names(allNames))
		case x.value == "":
			return fmt.Errorf("attribute %q is empty", x.name)
		case slices.Contains(lowerNames, x.name) && !a.has("macvtap"):
			return fmt.Errorf("attribute %q needs macvtap", x.name)
		case slices.Contains(ovsNames, x.name) && !a.has("bridge"):
			return fmt.Errorf("attribute %q needs bridge, one of Open vSwitch", x.name)
		case x.name == "ip" && !a.has("network", "routed", "port-security"):
			return fmt.Errorf("attribute %q needs network, routed or port-security", x.name)
		case slices.Contains(securityNames, x.name) && !a.has(placeNames...):
			return fmt.Errorf("attribute %q needs %s: vmnet checks only the devices that it makes", x.name,
				strings.Join(placeNames, ", "))
		case slices.Contains(rateNames, x.name) && !a.has(placeNames...):
			return fmt.Errorf("attribute %q needs %s: vmnet limits only the devices that it makes, and libvirt "+
				"those of its own (<bandwidth>)", x.name, strings.Join(placeNames, ", "))
		}
	}
	var places []string
	for _, name := range placeNames {
		if a.has(name) {
			places = append(places, name)
		}
	}
	switch {
	case len(places) > 1:
		return fmt.Errorf("%s: a NIC has only one of them", strings.Join(places, " and "))
	case !a.has("id") && len(places) > 0:
		return errors.New("it needs an id, since vmnet makes its device")
	case !a.has("id", "mac"):
		return errors.New("it needs an id or a mac to find its interface")
	case len(places) == 0 && !a.has(portNames...):
		return fmt.Errorf("it declares nothing: want bridge=, network=, routed= or macvtap=, "+
			"or settings of its port: %s", names(portNames))
	}
	return nil
}

// take parses one attribute. Except for id and mac it is parsed like the flag of that name.
func (n *NIC) take(fs *pflag.FlagSet, x attribute) (err error) {
	switch x.name {
	case "id":
		n.ID = x.value
		return nic.ValidNIC(x.value)
	case "mac":
		if n.MAC, err = net.ParseMAC(x.value); err == nil && len(n.MAC) != 6 {
			err = errors.New("want 6 bytes")
		}
		return err
	}
	flag := fs.Lookup(x.name)
	if nicflags.Repeatable(flag) {
		for _, item := range strings.Fields(x.value) {
			if err := fs.Set(x.name, item); err != nil {
				return err
			}
		}
		return nil
	}
	if flag.Value.Type() != "bool" {
		return flag.Value.Set(x.value)
	}
	switch x.value {
	case "yes":
		return flag.Value.Set("true")
	case "no":
		return flag.Value.Set("false")
	}
	return errors.New("want yes or no")
}

// Ports reads the declared port settings for the taps of a running domain that libvirt makes. It
// includes NICs that the domain does not have now but may be given, which are then known by their
// MAC. Each has a MAC. Anything unknown or impossible is an error, as in Parse. NICs whose devices
// vmnet makes are skipped.
func Ports(def *domainxml.Definition) ([]NIC, error) {
	all, err := elements(def)
	if err != nil {
		return nil, err
	}
	var nics []NIC
	for _, attrs := range all {
		n, err := attrs.nic()
		if err == nil && !n.Made {
			n, err = n.now(def.Interfaces)
		}
		if err != nil {
			return nil, fmt.Errorf("nic %s: %w", attrs.label(), err)
		}
		if !n.Made && n.MAC != nil {
			nics = append(nics, n)
		}
	}
	return nics, nil
}

// now returns the NIC with its current interface, if there is one.
func (n NIC) now(all []domainxml.Interface) (NIC, error) {
	there := slices.ContainsFunc(all, func(x domainxml.Interface) bool {
		return n.ID != "" && domainxml.AliasNIC(x.Alias) == n.ID || n.MAC != nil && bytes.Equal(x.MAC, n.MAC)
	})
	if !there {
		return n, nil
	}
	i, err := find(all, n)
	if err != nil {
		return n, err
	}
	n.Interface = all[i]
	n.MAC = n.Interface.MAC
	return n, n.onTapOfLibvirt()
}
