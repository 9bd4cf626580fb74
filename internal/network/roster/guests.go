package roster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/tapmgr/nic"
)

// Guest is a guest's NIC in a network.
type Guest struct {
	VM, NIC   string
	Interface string // the bridge's port
	Index     int    // of the interface: an earlier one has a lower index
	MAC       net.HardwareAddr
	IP        []netip.Addr // that the NIC asks for; once named, that it has
	Name      string       // in the DNS, without the domain; empty for none, or before it is named
}

// Title returns the names of guest and NIC.
func (g Guest) Title() string { return g.VM + "/" + g.NIC }

// Of returns the guests that belong to the network of a bridge, in the order in which their
// interfaces were made.
func Of(nl *rtnl.Conn, br *rtnl.Link) ([]Guest, error) {
	ports, err := nl.Links("", br.Index)
	if err != nil {
		return nil, fmt.Errorf("network %s: list its guests: %w", br.Name, err)
	}
	var guests []Guest
	for _, p := range ports {
		r, ok := nic.ParseRecord(p.Alias)
		if ok && r.Network != "" && r.Network == NetworkOf(br) {
			guests = append(
				guests,
				Guest{VM: r.VM, NIC: r.NIC, Interface: p.Name, Index: p.Index, MAC: r.MAC, IP: r.IP},
			)
		}
	}
	return guests, nil
}

// Sum returns a short text that differs for different guests. The server of a network shows it for
// those that it knows.
func Sum(guests []Guest) string {
	h := sha256.New()
	for _, g := range guests {
		fmt.Fprintf(h, "%d %q %q %s %v\n", g.Index, g.VM, g.NIC, g.MAC, g.IP)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// wpad is the name of the host that tells browsers their proxy.
const wpad = "wpad"

// Named returns the guests with the names and addresses that they have in network n: the first one
// that asks for a name or an address has it, after the hosts of the network's file. The second NIC
// of a guest, or the second guest of a name, is called after its NIC as well.
func Named(n *config.Network, guests []Guest) []Guest {
	names, ips := map[string]bool{wpad: true}, map[netip.Addr]bool{}
	fixed := n.Fixed()
	for _, h := range fixed {
		names[h.Name], ips[h.IP] = true, true
	}
	named := slices.Clone(guests)
	for i := range named {
		g := &named[i]
		host, isHost := hostOf(fixed, g.MAC)
		var has []netip.Addr
		if isHost {
			has = append(has, host.IP)
		}
		for _, a := range g.IP {
			if !ips[a] && n.CheckIP(a) == nil && !(isHost && a.Is4()) {
				has, ips[a] = append(has, a), true
			}
		}
		g.IP = has
		label := config.Label(g.VM)
		for _, name := range []string{label, config.Label(label + "-" + g.NIC)} {
			if label == "" || g.Name != "" {
				break
			}
			if !names[name] || isHost && name == host.Name {
				g.Name, names[name] = name, true
			}
		}
	}
	return named
}

// hostOf returns the host that has the address mac.
func hostOf(hosts []config.Host, mac net.HardwareAddr) (config.Host, bool) {
	i := slices.IndexFunc(hosts, func(h config.Host) bool { return h.MAC.String() == mac.String() })
	if i < 0 {
		return config.Host{}, false
	}
	return hosts[i], true
}
