package declared

import (
	"slices"
	"strings"

	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr"
)

// Editor is what tapmgr needs to declare the NICs that it hands to libvirt. Its elements are as those of
// [libvirt.Conn.Metadata]. A NIC is declared by its id alone, which its interface has in its alias: a clone of the guest
// (virt-clone) keeps that, and gets other MACs.
func Editor() tapmgr.Declarations {
	return tapmgr.Declarations{
		Namespace: Namespace,
		Prefix:    Prefix,
		Put: func(element string, spec tapmgr.Spec) (string, error) {
			return Put(inNamespace(element), NIC{ID: spec.NIC, Interface: domainxml.Interface{Alias: domainxml.Alias(spec.NIC)}, Made: true, Spec: spec, Port: spec.Port})
		},
		Has: func(element, nic string) (bool, error) {
			if element == "" {
				return false, nil
			}
			all, err := decode(inNamespace(element))
			return slices.ContainsFunc(all, func(a attributes) bool { return a.get("id") == nic }), err
		},
		Remove: func(element, nic string) (string, error) { return Remove(inNamespace(element), NIC{ID: nic}) },
	}
}

// inNamespace puts an element into our namespace, which libvirt has taken off.
func inNamespace(element string) string {
	if inside, ok := strings.CutPrefix(element, "<nics"); ok {
		return `<nics xmlns="` + Namespace + `"` + inside
	}
	return element
}
