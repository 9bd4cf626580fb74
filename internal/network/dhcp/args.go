// Package dhcp is a network's server as data: the arguments of dnsmasq(8), which gives guests
// addresses and answers their questions for names, and the leases that it writes.
package dhcp

import (
	"fmt"
	"net"

	"vmnet/internal/network/config"
)

// Program is the program that serves.
const Program = "dnsmasq"

// Link is the name of the server's interface in its own namespace.
const Link = "eth0"

// LeaseTime is how long a guest may use an address before it asks again.
const LeaseTime = "1h"

// maxLeases bounds how many addresses guests can take, by however many MACs, and so the lease file.
const maxLeases = 4096

// Args returns the arguments of the dnsmasq that runs in the server's namespace. It reads the
// host's resolv.conf, at the path resolv, again when it changes, and the guests' files at SIGHUP.
func Args(n *config.Network, files Files, resolv string) []string {
	return append(args(n, Link, files.Leases, resolv),
		"--dhcp-hostsfile="+files.Reservations, "--addn-hosts="+files.Names)
}

// UserArgs returns the arguments of the dnsmasq of a network that an ordinary user has in a network
// namespace of its own, where the network's interface has all addresses. It also sends the router
// advertisements, and logs to stderr. names is the directory of files with more names, as hosts(5).
// It reads the guests' reservations again at SIGHUP.
func UserArgs(n *config.Network, files Files, resolv, names string) []string {
	a := append(args(n, n.Name, files.Leases, resolv),
		"--log-facility=-", "--hostsdir="+names, "--dhcp-hostsfile="+files.Reservations,
		"--dhcp-option=option:dns-server,"+n.Server().Addr().String())
	if n.IPv6.IsValid() {
		a = append(a, routerArgs(n)...)
	}
	return a
}

func args(n *config.Network, link, leases, resolv string) []string {
	first, last := n.Leased()
	args := common()
	args = append(
		args,
		"--interface="+link, "--bind-interfaces", "--except-interface=lo",
		"--dhcp-authoritative",
		"--no-ping", // it would keep a guest waiting that asks twice
		// A guest is known by its NIC: guests from one image may send the same client id.
		"--dhcp-ignore-clid",
		"--dhcp-leasefile="+leases, fmt.Sprintf("--dhcp-lease-max=%d", maxLeases),
		fmt.Sprintf("--dhcp-range=%s,%s,%s,%s", first, last, net.IP(mask(n)), LeaseTime),
		"--domain="+n.Domain+","+n.Subnet.String()+",local",
		"--local=/"+n.Domain+"/",
		"--domain-needed",
		// A guest that calls itself wpad would be the proxy of the others.
		"--dhcp-name-match=set:wpad-ignore,wpad", "--dhcp-ignore-names=tag:wpad-ignore",
	)
	if router := n.Gateway(); router.IsValid() {
		args = append(args, "--dhcp-option=option:router,"+router.String(), "--resolv-file="+resolv)
	} else {
		args = append(args, "--dhcp-option=option:router", "--no-resolv") // no way out, so no router
	}
	if n.Uplink != nil && n.Uplink.VXLAN != nil { // longer frames would not reach other hosts
		args = append(args, fmt.Sprintf("--dhcp-option=option:mtu,%d", n.MTU))
	}
	for _, h := range n.Fixed() {
		// As a record of its own, no other guest can claim the name.
		args = append(args, fmt.Sprintf("--dhcp-host=%s,%s,%s", h.MAC, h.IP, h.Name),
			fmt.Sprintf("--host-record=%s.%s,%[1]s,%[3]s", h.Name, n.Domain, h.IP))
	}
	return args
}

// routerArgs are those by which dnsmasq also sends router advertisements.
func routerArgs(n *config.Network) []string {
	const interval = 10 // s
	lifetime := 1800    // s
	if !n.NAT {
		lifetime = 0 // no way out, so no router
	}
	return []string{
		"--enable-ra", fmt.Sprintf("--dhcp-range=%s,ra-only,%d", n.IPv6.Addr(), n.IPv6.Bits()),
		fmt.Sprintf("--ra-param=%s,mtu:%d,%d,%d", n.Name, n.GuestMTU(), interval, lifetime),
		fmt.Sprintf("--dhcp-option=option6:dns-server,[%s]", n.Server6().Addr()),
		"--dhcp-option=option6:domain-search," + n.Domain,
	}
}

// common are the arguments of every dnsmasq: it stays the process that was started, reads no file
// that is not named, and logs to syslog.
func common() []string {
	return []string{"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-hosts"}
}

func mask(n *config.Network) net.IPMask { return net.CIDRMask(n.Subnet.Bits(), 32) }
