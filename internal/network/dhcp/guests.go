package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/network/config"
)

// DefaultState is the directory of the servers' files.
const DefaultState = "/var/lib/vmnet/networks"

// Files are the paths of the files of a network's server.
type Files struct {
	Leases       string // which dnsmasq writes
	Reservations string // of guests' addresses and names by their MACs, which dnsmasq reads
	Names        string // of guests with addresses of their own, which dnsmasq reads
}

// FilesOf returns the paths of a network's files in the directory state.
func FilesOf(state, network string) Files {
	path := func(suffix string) string { return filepath.Join(state, network+suffix) }
	return Files{path(".leases"), path(".reservations"), path(".names")}
}

// All returns the paths.
func (f Files) All() []string { return []string{f.Leases, f.Reservations, f.Names} }

// Guest is what a server knows of a guest's NIC.
type Guest struct {
	MAC  net.HardwareAddr
	IP   []netip.Addr // its own addresses
	Name string       // without the domain; empty for none
}

// Guests are the guests that a server should know.
type Guests struct {
	List []Guest
	Sum  string // as the alias of the server's port shows it once the server knows them
}

// Reserved returns the guest's own IPv4 address, which the server gives it; the zero Addr for none.
func (g Guest) Reserved() netip.Addr {
	for _, a := range g.IP {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Reservations returns the text of Files.Reservations: lines as dnsmasq takes them by
// --dhcp-hostsfile. Hosts of the network are among the arguments of dnsmasq, and not here.
func Reservations(n *config.Network, guests []Guest) string {
	var b strings.Builder
	fixed := n.Fixed()
	for _, g := range guests {
		isHost := slices.ContainsFunc(fixed, func(h config.Host) bool { return h.MAC.String() == g.MAC.String() })
		fields := []string{g.MAC.String()}
		if a := g.Reserved(); a.IsValid() {
			fields = append(fields, a.String())
		}
		if g.Name != "" {
			fields = append(fields, g.Name)
		}
		if !isHost && len(fields) > 1 {
			fmt.Fprintln(&b, strings.Join(fields, ","))
		}
	}
	return b.String()
}

// Names returns the text of Files.Names: lines as in hosts(5).
func Names(n *config.Network, guests []Guest) string {
	var b strings.Builder
	for _, g := range guests {
		for _, a := range g.IP {
			if g.Name != "" {
				fmt.Fprintf(&b, "%s %s.%s %[2]s\n", a, g.Name, n.Domain)
			}
		}
	}
	return b.String()
}
