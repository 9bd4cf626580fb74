package declared

import (
	"bytes"
	"fmt"
	"slices"

	"vmnet/libvirt/domainxml"
)

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
