// Package forwarding reads and writes the kernel's settings by which a host forwards packets, for
// programs that turn them on and later set them back (Documentation/networking/ip-sysctl.rst).
//
// A host that begins to forward IPv6 on any link drops the default routes that it has from router
// advertisements (addrconf_fixup_forwarding in net/ipv6/addrconf.c, rt6_purge_dflt_routers in
// net/ipv6/route.c), and ignores further ones on the links on which it forwards. Links whose
// accept_ra is 2 are exempt.
package forwarding

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// The settings of the whole host. Writing one sets it for each link as well.
const (
	IP4 = "net/ipv4/ip_forward"
	IP6 = "net/ipv6/conf/all/forwarding"
)

// AcceptRA returns the setting that says whether a link's router advertisements are heeded: 1 where
// the host does not forward, 2 always.
func AcceptRA(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

// Dotted returns a setting as sysctl(8) writes it.
func Dotted(setting string) string { return strings.ReplaceAll(setting, "/", ".") }

// Settings are those of one network namespace.
type Settings struct{ NS *netns.NS }

// Read returns a setting. ok is false if the kernel does not have it.
func (s Settings) Read(name string) (value string, ok bool, err error) {
	var text []byte
	err = s.NS.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return strings.TrimSpace(string(text)), err == nil, err
}

// Write sets a setting. It needs CAP_NET_ADMIN in the user namespace that owns the netns.
func (s Settings) Write(name, value string) error {
	return s.NS.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
	})
}

// SetBack writes value if the setting is still what a program has set it to.
func (s Settings) SetBack(name, set, value string) error {
	now, ok, err := s.Read(name)
	if err != nil || !ok || now != set {
		return err
	}
	return s.Write(name, value)
}

// IsOff reports whether the kernel has a setting, and it is 0.
func (s Settings) IsOff(name string) (bool, error) {
	value, ok, err := s.Read(name)
	return ok && value == "0", err
}

// Advertised returns the links by which the host has a default route from a router advertisement
// that it would lose.
func (s Settings) Advertised(nl *rtnl.Conn) (links []string, err error) {
	routes, err := nl.Routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if !r.RA || r.Dst != netip.PrefixFrom(netip.IPv6Unspecified(), 0) || r.Link == 0 {
			continue
		}
		l, err := nl.LinkByIndex(r.Link)
		if err != nil {
			continue // it has gone
		}
		value, ok, err := s.Read(AcceptRA(l.Name))
		if err != nil {
			return nil, err
		}
		if ok && value == "1" && !slices.Contains(links, l.Name) {
			links = append(links, l.Name)
		}
	}
	return links, nil
}
