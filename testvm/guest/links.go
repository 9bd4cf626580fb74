package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/testvm/agent"
)

func links() ([]agent.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make([]agent.Link, 0, len(all))
	for _, l := range all {
		out = append(out, describe(l))
	}
	return out, nil
}

// describe reads what it can: a link that disappears meanwhile has fewer fields.
func describe(l netlink.Link) agent.Link {
	a := l.Attrs()
	sys := "/sys/class/net/" + a.Name
	out := agent.Link{
		Name: a.Name, Index: a.Index, MAC: a.HardwareAddr.String(), MTU: a.MTU,
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		RxQueues: count(sys + "/queues/rx-*"), TxQueues: count(sys + "/queues/tx-*"),
	}
	out.Driver, out.PCI = device(sys)
	if s := a.Statistics; s != nil {
		out.Counters = agent.Counters{
			RxPackets: s.RxPackets, RxBytes: s.RxBytes, RxDropped: s.RxDropped, RxErrors: s.RxErrors,
			TxPackets: s.TxPackets, TxBytes: s.TxBytes, TxDropped: s.TxDropped, TxErrors: s.TxErrors,
		}
	}
	addrs, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
	for _, addr := range addrs {
		out.Addrs = append(out.Addrs, addr.IPNet.String())
	}
	return out
}

func count(pattern string) int {
	names, _ := filepath.Glob(pattern)
	return len(names)
}

// device returns a link's driver and PCI address. The address is the name of the device's directory
// in sysfs, or for virtio that of the directory above it.
func device(sys string) (driver, pci string) {
	if target, err := os.Readlink(sys + "/device/driver"); err == nil {
		driver = filepath.Base(target)
	}
	path, err := filepath.EvalSymlinks(sys + "/device")
	if err != nil {
		return driver, ""
	}
	if strings.HasPrefix(filepath.Base(path), "virtio") {
		path = filepath.Dir(path)
	}
	return driver, filepath.Base(path)
}

// waitNIC checks every 20 ms until a link with that address exists, or is gone.
func waitNIC(ctx context.Context, w agent.NICWait) (agent.Link, error) {
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return agent.Link{}, err
	}
	for {
		all, err := links()
		if err != nil {
			return agent.Link{}, err
		}
		found := agent.Link{}
		for _, l := range all {
			if l.MAC == mac.String() {
				found = l
			}
		}
		if (found.MAC == "") == w.Gone {
			return found, nil
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return agent.Link{}, fmt.Errorf("NIC %s: %w", mac, context.Cause(ctx))
		}
	}
}

func setMAC(link netlink.Link, mac string) error {
	addr, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	return netlink.LinkSetHardwareAddr(link, addr)
}

func changeAddr(_ context.Context, c agent.AddrChange) (none, error) {
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return none{}, fmt.Errorf("link %s: %w", c.Link, err)
	}
	addr, err := netlink.ParseAddr(c.Addr)
	if err != nil {
		return none{}, err
	}
	change := netlink.AddrReplace
	if c.Remove {
		change = netlink.AddrDel
	} else if addr.IP.To4() == nil {
		addr.Flags |= unix.IFA_F_NODAD
	}
	if err := change(link, addr); err != nil {
		return none{}, fmt.Errorf("address %s on %s: %w", c.Addr, c.Link, err)
	}
	return none{}, nil
}

func addRoute(_ context.Context, r agent.Route) (none, error) {
	route := netlink.Route{}
	if r.Via != "" {
		if route.Gw = net.ParseIP(r.Via); route.Gw == nil {
			return none{}, fmt.Errorf("gateway %q is not an address", r.Via)
		}
	}
	if r.Link != "" {
		link, err := netlink.LinkByName(r.Link)
		if err != nil {
			return none{}, fmt.Errorf("link %s: %w", r.Link, err)
		}
		route.LinkIndex = link.Attrs().Index
		if route.Gw != nil {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
	}
	if route.Gw == nil && route.LinkIndex == 0 {
		return none{}, errors.New("a route needs a gateway or a link")
	}
	to := r.To
	if to == "default" {
		to = "0.0.0.0/0"
		if route.Gw != nil && route.Gw.To4() == nil {
			to = "::/0"
		}
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return none{}, err
	}
	route.Dst = dst
	if err := netlink.RouteReplace(&route); err != nil {
		return none{}, fmt.Errorf("route to %s: %w", r.To, err)
	}
	return none{}, nil
}
