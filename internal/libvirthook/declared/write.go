package declared

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/cli/nicflags"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// XML returns the element that declares the NICs, as [libvirt.Conn.SetMetadata] takes it with
// Namespace and Prefix: without a namespace. It omits what the NICs' interfaces say.
func XML(nics []NIC) (string, error) {
	var all []attributes
	for _, n := range nics {
		attrs, err := n.attributes()
		if err != nil {
			return "", err
		}
		all = append(all, attrs)
	}
	return encode(all), nil
}

// Put returns the element, in the form of [domainxml.Definition.Metadata], with nic added, or in
// place of the one with its id or MAC. An empty text is an element without NICs. The result has the
// form of [XML].
func Put(text string, nic NIC) (string, error) {
	attrs, err := nic.attributes()
	if err != nil {
		return "", err
	}
	all, err := without(text, nic)
	return encode(append(all, attrs)), err
}

// Remove returns the element without the NIC of that id or MAC; empty if no NIC is left.
func Remove(text string, nic NIC) (string, error) {
	all, err := without(text, nic)
	if err != nil || len(all) == 0 {
		return "", err
	}
	return encode(all), nil
}

// without decodes the element and drops the NIC.
func without(text string, nic NIC) ([]attributes, error) {
	if text == "" {
		return nil, nil
	}
	all, err := decode(text)
	return slices.DeleteFunc(all, func(a attributes) bool {
		return nic.ID != "" && a.get("id") == nic.ID ||
			nic.MAC != nil && strings.EqualFold(a.get("mac"), nic.MAC.String())
	}), err
}

func encode(all []attributes) string {
	var b strings.Builder
	b.WriteString("<nics>")
	for _, attrs := range all {
		b.WriteString("<nic")
		for _, a := range attrs {
			b.WriteString(" " + a.name + `="`)
			_ = xml.EscapeText(&b, []byte(a.value)) // a Builder never fails
			b.WriteString(`"`)
		}
		b.WriteString("/>")
	}
	b.WriteString("</nics>")
	return b.String()
}

// attributes returns the NIC as attributes.
func (n NIC) attributes() (attributes, error) {
	var a attributes
	add := func(name, value string) {
		if value != "" {
			a = append(a, attribute{name, value})
		}
	}
	add("id", n.ID)
	if n.ID == "" || domainxml.AliasNIC(n.Interface.Alias) != n.ID {
		add("mac", n.MAC.String())
	}
	if n.Made {
		add("bridge", n.Spec.Bridge)
		add("network", n.Spec.Network)
		add("routed", n.Spec.Routed)
		n.addPolicy(add)
		n.addLower(add)
	}
	addPort(add, n.Port)
	_, err := a.nic() // what is written must be readable
	if err != nil {
		return nil, fmt.Errorf("declare nic %s: %w", a.label(), err)
	}
	return a, nil
}

// addPolicy adds its port of Open vSwitch, the guest's addresses, what its frames are checked by,
// and their rates.
func (n NIC) addPolicy(add func(name, value string)) {
	policy := nic.Spec{
		IfaceID: n.Spec.IfaceID, OVSDB: n.Spec.OVSDB, IP: n.Spec.IP,
		Security: n.Spec.Security, AllowIn: n.Spec.AllowIn, Rates: n.Spec.Rates,
	}
	for _, w := range nicflags.Words(policy) {
		value := strings.Join(w.Values, " ")
		if w.Flag == "shape" {
			value = yes(n.Spec.Rates.Shape)
		}
		add(w.Flag, value)
	}
}

func (n NIC) addLower(add func(name, value string)) {
	l := n.Spec.Lower
	if l == nil {
		return
	}
	var sources []string
	for _, mac := range l.Sources {
		sources = append(sources, mac.String())
	}
	add(string(l.Kind), l.Device)
	add("mode", l.Mode)
	add("source-mac", strings.Join(sources, " "))
	add("nopromisc", yes(l.NoPromisc))
	add("rx-filter", l.RxFilter)
}

func addPort(add func(name, value string), p brport.Settings) {
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	add("vlan", number(p.VLAN))
	add("trunk", brport.FormatVLANs(p.Trunk))
	add("native", number(p.Native))
	add("isolated", yes(p.Isolated))
	add("hairpin", yes(p.Hairpin))
	add("no-learning", yes(p.NoLearning))
	add("no-flood", yes(p.NoFlood))
	add("forward", p.Forward.String())
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// Declarations for NICs that vmnet hands over to libvirt. The elements have the form of
// [libvirt.Conn.Metadata]; an empty text is no element. A NIC is declared by its id alone, which
// its interface has in its alias: a clone of the guest (virt-clone) keeps the alias, and gets other
// MACs.

// Declare returns the element with the NIC of a Spec added, or in place of the NIC with the same
// id.
func Declare(element string, spec nic.Spec) (string, error) {
	return Put(inNamespace(element), NIC{
		ID: spec.NIC, Interface: domainxml.Interface{Alias: domainxml.Alias(spec.NIC)},
		Made: true, Spec: spec, Port: spec.Port,
	})
}

// Declares reports whether the element contains the NIC of that id.
func Declares(element, id string) (bool, error) {
	if element == "" {
		return false, nil
	}
	all, err := decode(inNamespace(element))
	return slices.ContainsFunc(all, func(a attributes) bool { return a.get("id") == id }), err
}

// Of returns what the element says of the NIC of that id: its place and settings. It is zero for
// none.
func Of(element, id string) (nic.Spec, error) {
	if element == "" {
		return nic.Spec{}, nil
	}
	all, err := decode(inNamespace(element))
	i := slices.IndexFunc(all, func(a attributes) bool { return a.get("id") == id })
	if err != nil || i < 0 {
		return nic.Spec{}, err
	}
	n, err := all[i].nic()
	return n.Spec, err
}

// Undeclare returns the element without the NIC of that id.
func Undeclare(element, id string) (string, error) {
	return Remove(inNamespace(element), NIC{ID: id})
}

// inNamespace restores the namespace of an element, which libvirt has removed.
func inNamespace(element string) string {
	if inside, ok := strings.CutPrefix(element, "<nics"); ok {
		return `<nics xmlns="` + Namespace + `"` + inside
	}
	return element
}
