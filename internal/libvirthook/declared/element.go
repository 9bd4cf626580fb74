package declared

import (
	"slices"
	"strings"

	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

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
