// Package usernet makes the networks of an ordinary user, without any privilege: a switch in
// userspace, and behind a port of it a network namespace, in a user namespace, which has what a
// network of root has in the kernel: addresses, rules, and the server for addresses and names.
// pasta(1) leads from there to what the user's programs reach.
//
//	place.go     the steps of the verbs (network.Elsewhere)
//	client.go    asks the process that runs a network
//	serve.go     that process, the supervisor: switch, agent, pasta
//	agent.go     its child in the namespaces: interface, rules, dnsmasq
//	wide.go      long segments of TCP for guests with a small MTU
//	pasta.go     the way out
//	relay.go     forwards from the host's ports
//
// All processes of a network are children of its supervisor, and the kernel kills them with it. The
// agent is the first process of a pid namespace, so what it has started ends with it; then the
// supervisor ends. It starts pasta again if that ends, as the agent does dnsmasq.
package usernet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/tool"
)

// Gateway is the name of the switch's port behind which the namespace is. No guest's port has it.
const Gateway = "gateway"

// wan is pasta's interface in the namespace. Names of networks have no upper-case letters.
const wan = "WAN"

// Addresses of the namespace on pasta's interface, and of the routers that pasta plays there. They
// are of this link only: pasta replaces them by the host's. The IPv4 network is reserved for such
// links (RFC 7335), and the IPv6 network is a unique local one (RFC 4193).
var (
	inside4 = netip.MustParsePrefix("192.0.0.2/29")
	router4 = netip.MustParseAddr("192.0.0.1")
	inside6 = netip.MustParsePrefix("fd76:6d6e:6574:1::1/64")
	router6 = netip.MustParseAddr("fe80::1")
)

// Check returns why a user cannot have such a network, or nil.
func Check(n *config.Network) error {
	if err := control.CheckName(n.Name); err != nil || n.Name == "lo" {
		return fmt.Errorf("network %s: a user's network cannot have that name (choose another)", n.Name)
	}
	if n.Uplink != nil {
		return fmt.Errorf("network %s: an uplink needs root (sudo vmnet network create, or --nat)", n.Name)
	}
	for _, p := range n.Prefixes() {
		for _, own := range []netip.Prefix{inside4, inside6} {
			if p.Overlaps(own) {
				return fmt.Errorf("network %s: %s overlaps %s, which pasta uses (choose another subnet)",
					n.Name, p, own.Masked())
			}
		}
	}
	_, err := forwardsOf(n)
	return err
}

// programs are what a user's network runs, with the Debian packages that have them.
var programs = []struct{ name, pkg string }{
	{dhcp.Program, "dnsmasq-base"}, {"nft", "nftables"}, {pastaProgram, "passt"},
}

// Lacks returns why this machine runs no networks of this user: an error with its cure for each
// reason. It starts a process in namespaces, and ends it again.
func Lacks() []error {
	errs := missing()
	a, err := startAgent()
	if err == nil {
		err = a.close()
	}
	if err != nil {
		errs = append(errs, err)
	}
	return errs
}

// CheckMachine returns why this machine runs no networks of users, with all that is missing.
func CheckMachine() error { return errors.Join(missing()...) }

// missing returns errors for the programs and the device that are missing.
func missing() (errs []error) {
	for _, p := range programs {
		if _, err := tool.Find(p.name, p.pkg); err != nil {
			errs = append(errs, err)
		}
	}
	f, err := os.OpenFile(tun.Device, os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		errs = append(errs, fmt.Errorf("%w (load the module as root: modprobe tun)", err))
	case errors.Is(err, fs.ErrPermission):
		errs = append(errs, fmt.Errorf("%w (udev lets all users open it: chmod 0666 %s as root)", err, tun.Device))
	case err != nil:
		errs = append(errs, err)
	}
	return errs
}

// The settings by which distributions keep users from user namespaces, with the values that do.
var userNSSettings = []struct{ path, value, cure string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=16384"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
	{
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
		"give vmnet an AppArmor profile with the rule userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
	},
}

// explainUserNS adds to an error of the making of a user namespace what keeps users from it.
func explainUserNS(err error) error {
	for _, s := range userNSSettings {
		value, readErr := os.ReadFile(s.path)
		if readErr == nil && strings.TrimSpace(string(value)) == s.value {
			return fmt.Errorf("make a user namespace: %w: %s is %s (as root: %s)", err, s.path, s.value, s.cure)
		}
	}
	return fmt.Errorf("make a user namespace: %w (a chroot, or a container's seccomp filter, forbids it)", err)
}

// paths are the files of a user's network beside its file in config.Dir.
func leaseFile(state, name string) string { return dhcp.FilesOf(state, name).Leases }
func logFile(state, name string) string   { return filepath.Join(state, name+".log") }

// reservationFile has the addresses of guests that asked for one, by their MACs.
func reservationFile(state, name string) string { return dhcp.FilesOf(state, name).Reservations }

// ruled returns a network whose rules are those of its namespace: there a forward is from any
// address, and only guests connect to it. The switch isolates guests.
func ruled(n *config.Network) *config.Network {
	r := *n
	r.Isolated = false
	r.Forwards = slices.Clone(n.Forwards)
	for i := range r.Forwards {
		r.Forwards[i].Listen = netip.Addr{}
	}
	return &r
}
