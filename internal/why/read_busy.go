package why

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/ovs"
	"vmnet/internal/ovsdb"
	"vmnet/tapmgr"
)

// errElsewhere ends a search.
var errElsewhere = errors.New("found")

// Limits of a look at the files of processes of other users, who may have many.
const (
	maxFilesOfProcess = 4096
	maxFilesOfUser    = 65536
)

// ReadBusy reads what holds a device, by its name or altname, or an address.
func ReadBusy(ctx context.Context, m *tapmgr.Manager, ns *netns.NS, name string) (*BusyFacts, error) {
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	f := &BusyFacts{Name: name}
	if a, err := netip.ParseAddr(name); err == nil {
		f.Addr = a.Unmap()
	}
	if f.Links, err = nl.Links("", 0); err != nil {
		return nil, err
	}
	addrs, err := nl.AddrsByLink()
	if err != nil {
		return nil, err
	}
	for link, all := range addrs {
		for _, a := range all {
			f.Addrs = append(f.Addrs, Addr{link, a})
		}
	}
	if f.NICs, err = m.Survey(ctx, "", tapmgr.Look{Addresses: f.Addr.IsValid()}); err != nil || f.Addr.IsValid() {
		return f, err
	}
	l := f.link()
	if l == nil {
		f.Netns = elsewhere(ns, name)
		if f.Netns == "" {
			return nil,
				fmt.Errorf("why-busy %s: there is no such device (ip link shows them), and it is no address", name)
		}
		return f, nil
	}
	return f, f.readLink(ctx, ns, nl, l)
}

// link returns the device, or nil.
func (f *BusyFacts) link() *rtnl.Link {
	return find(f.Links, func(l *rtnl.Link) bool { return l.Name == f.Name || slices.Contains(l.AltNames, f.Name) })
}

// readLink reads what only some devices have.
func (f *BusyFacts) readLink(ctx context.Context, ns *netns.NS, nl *rtnl.Conn, l *rtnl.Link) error {
	self, err := nl.NetnsID(ns)
	if all, allErr := macvlan.Everywhere(nl); err == nil && allErr == nil && self >= 0 {
		for _, d := range all {
			if d.LowerNS == self && d.Lower == l.Index {
				f.Abroad = append(f.Abroad, Abroad{d.Name, d.Kind, isPassthru(d.Link), d.Lower})
			}
		}
	}
	if l.Tun != nil {
		if err := f.readOpeners(ctx, ns, l); err != nil {
			return err
		}
	}
	if _, err := os.Stat(ovsdb.DefaultPath); err == nil {
		reading, cancel := context.WithTimeout(ctx, ovs.ReadWait)
		defer cancel()
		_ = ovs.With(reading, "", func(c *ovs.Conn) (err error) { // without it the kernel's own word is left
			f.OVS, err = c.Named(reading, l.Name)
			return err
		})
	}
	f.Claimed, _ = endpoint.Claimed(ns, l.Name) // only root sees it
	return nil
}

// isPassthru reports whether a macvlan or macvtap takes its parent device for itself.
func isPassthru(l *rtnl.Link) bool {
	const modePassthru = 8 // MACVLAN_MODE_PASSTHRU
	return l.Macvlan != nil && l.Macvlan.Mode == modePassthru
}

// readOpeners finds the processes that have a tap open, as far as the caller may see.
func (f *BusyFacts) readOpeners(ctx context.Context, ns *netns.NS, l *rtnl.Link) error {
	inode, err := ns.Inode()
	if err != nil {
		return err
	}
	scan := &procfd.Scan{PerProcess: maxFilesOfProcess, PerUser: maxFilesOfUser}
	return scan.All(ctx, func(file procfd.File) {
		if !tun.LooksLikeQueue(file) || tun.InterfaceOf(file) != l.Name || !tun.InNetns(file, inode) {
			return
		}
		for _, o := range f.Opened {
			if o.PID == file.PID {
				return
			}
		}
		name, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(file.PID), "comm")) // it may have ended
		f.Opened = append(f.Opened, Opener{file.PID, strings.TrimSpace(string(name))})
	})
}

// elsewhere returns another namespace that has a device of the name; empty if none is seen.
func elsewhere(ns *netns.NS, name string) (found string) {
	err := ns.Others(func(other *netns.NS) error {
		nl, err := rtnl.Open(other)
		if err != nil {
			return nil // the caller may not look there
		}
		defer nl.Close()
		if _, err := nl.Link(name); err == nil {
			found = other.String()
			return errElsewhere
		}
		return nil
	})
	if err != nil && !errors.Is(err, errElsewhere) {
		return ""
	}
	return strings.TrimPrefix(found, netns.RunDir+"/")
}
