package usernet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

// namesPoll is how often guests and their leases are looked at.
const namesPoll = 300 * time.Millisecond

// namesDir returns the directory whose files dnsmasq reads as it does hosts(5), also new and
// changed ones (--hostsdir): the names of guests by which vmnet knows them.
func namesDir(state, name string) string { return filepath.Join(state, name+".names") }

// keepGuests gives guests their own names on the network, beside those that they ask for by DHCP,
// and the addresses that they were attached with, until ctx ends. What fails is tried again.
func (s *supervisor) keepGuests(ctx context.Context) {
	k := guestKeeper{s: s, written: map[string]string{}, asked: map[string]string{}}
	ticker := time.NewTicker(namesPoll)
	defer ticker.Stop()
	failure := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := k.keep(ctx); err == nil {
			failure = ""
		} else if text := fmt.Sprintf("names and addresses of guests: %v", err); text != failure && ctx.Err() == nil {
			failure = text
			s.Notice(text)
		}
	}
}

// guestKeeper is what a supervisor has told the server of its guests.
type guestKeeper struct {
	s        *supervisor
	written  map[string]string // the contents of files, by their names
	asked    map[string]string // the names that guests have asked for, by their MACs
	reserved []string          // as reservationsOf returns them
}

// keep tells the server what has changed since.
func (k *guestKeeper) keep(ctx context.Context) error {
	ports := k.s.sw.Ports()
	n := k.s.now.network()
	if n == nil {
		return nil
	}
	if list := reservationsOf(n, ports); !slices.Equal(list, k.reserved) {
		if err := k.s.reserve(ctx, list); err != nil {
			return err
		}
		k.reserved = list
	}
	if len(ports) < 2 && len(k.written) == 0 {
		return nil // there are no guests
	}
	leases, err := readLeases(leaseFile(k.s.State, n.Name))
	if err != nil {
		return nil // it is being written
	}
	return update(namesDir(k.s.State, n.Name), k.written, hostsOf(n, ports, leases, k.asked))
}

func readLeases(path string) ([]dhcp.Lease, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return nil, err
	}
	return dhcp.ParseLeases(text.Bytes())
}

// hostsOf returns the files of the names of guests: those whose NICs vmnet has attached, and who
// have a lease. The names of the network's file belong to others. dnsmasq replaces the name that a
// guest has asked for by that of its file, so asked remembers it, and the file has both.
func hostsOf(n *config.Network, ports []control.Port, leases []dhcp.Lease, asked map[string]string,
) map[string]string {
	owners := map[string]string{} // the MACs of guests, by their names
	for _, g := range guestsOf(n, ports) {
		if g.Name != "" {
			owners[g.Name] = g.MAC
		}
	}
	files := map[string]string{}
	for name, mac := range owners {
		i := slices.IndexFunc(leases, func(l dhcp.Lease) bool { return l.MAC == mac })
		if i < 0 {
			continue
		}
		if given := leases[i].Name; given != "" && given != name {
			asked[mac] = given
		}
		names := []string{name}
		_, fixed := n.Host(asked[mac])
		if _, ours := owners[asked[mac]]; asked[mac] != "" && !ours && !fixed {
			names = append(names, asked[mac])
		}
		text := leases[i].IP.String()
		for _, name := range names {
			text += fmt.Sprintf(" %s.%s %[1]s", name, n.Domain)
		}
		files[name] = text + "\n"
	}
	return files
}

// guestsOf returns the guests whose NICs vmnet has attached. The first of a name has it.
func guestsOf(n *config.Network, ports []control.Port) (guests []network.GuestInfo) {
	names := map[string]bool{"": true}
	for _, p := range ports {
		r, ok := nic.ParseRecord(p.Label)
		if !ok {
			continue
		}
		g := network.GuestInfo{VM: r.VM, NIC: r.NIC, Interface: p.Name, MAC: r.MAC.String()}
		name := hostName(r.VM)
		if _, taken := n.Host(name); !taken && !names[name] {
			g.Name, names[name] = name, true
		}
		guests = append(guests, g)
	}
	return guests
}

// reservationsOf returns lines of a MAC and an IPv4 address for the guests that were attached with
// one. The first one that asks for an address has it, after the hosts of the network's file.
func reservationsOf(n *config.Network, ports []control.Port) (lines []string) {
	taken, known := map[netip.Addr]bool{}, map[string]bool{}
	for _, h := range n.Fixed() {
		taken[h.IP], known[h.MAC.String()] = true, true
	}
	for _, p := range ports {
		r, ok := nic.ParseRecord(p.Label)
		i := slices.IndexFunc(r.IP, netip.Addr.Is4)
		if !ok || i < 0 || known[r.MAC.String()] || taken[r.IP[i]] || n.CheckIP(r.IP[i]) != nil {
			continue
		}
		taken[r.IP[i]], known[r.MAC.String()] = true, true
		lines = append(lines, reservation(r.MAC, r.IP[i]))
	}
	return lines
}

// reservation is a line of dnsmasq's --dhcp-hostsfile.
func reservation(mac net.HardwareAddr, a netip.Addr) string { return mac.String() + "," + a.String() }

// unfinished returns the path under which a file is written before it gets its own.
func unfinished(path string) string { return path + ".new" }

// reserve has the server give guests these addresses, and no others theirs.
func (s *supervisor) reserve(ctx context.Context, lines []string) error {
	path := reservationFile(s.State, s.Network.Name)
	text := ""
	for _, line := range lines {
		text += line + "\n"
	}
	err := os.WriteFile(unfinished(path), []byte(text), 0o600)
	if err == nil {
		err = os.Rename(unfinished(path), path)
	}
	if err == nil {
		_, _, err = s.agent.ask(ctx, order{Reload: true})
	}
	if err == nil {
		s.now.locked(func() { s.now.reserved = lines })
	}
	return err
}

// maxHostName bounds a name in bytes (RFC 1035).
const maxHostName = 63

// hostName returns the name of a guest as a host's: in lower case, with hyphens for what no name of
// a host has. It is empty if nothing is left.
func hostName(vm string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, vm)
	return strings.Trim(name[:min(len(name), maxHostName)], "-")
}

// update writes the files of want in place of those of has, which becomes the same.
func update(dir string, has, want map[string]string) error {
	for name, text := range want {
		if has[name] == text {
			continue
		}
		temp := filepath.Join(dir, "."+name) // which dnsmasq does not read
		err := os.WriteFile(temp, []byte(text), 0o600)
		if err == nil {
			err = os.Rename(temp, filepath.Join(dir, name))
		}
		if err != nil {
			return err
		}
		has[name] = text
	}
	for name := range has {
		if _, ok := want[name]; ok {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(has, name)
	}
	return nil
}
