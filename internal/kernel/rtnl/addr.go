package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddAddr gives a link an IP address with its prefix length. An IPv6 address is usable at once,
// without duplicate address detection. The host does not send to other links with a link-local one.
func (c *Conn) AddAddr(index int, p netip.Prefix) error {
	req := c.request(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(p.Bits())
	if p.Addr().IsLinkLocalUnicast() { // the kernel knows only IPv6's
		msg.Scope = unix.RT_SCOPE_LINK
	}
	if p.Addr().Is6() {
		msg.IfAddrmsg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	return c.do(req)
}

// DeleteAddr removes an IP address from a link. It is no error if the link does not have it.
func (c *Conn) DeleteAddr(index int, p netip.Prefix) error {
	req := c.request(unix.RTM_DELADDR, unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(p.Bits())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	if err := c.do(req); !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Addrs lists the IP addresses of a link, without IPv6 link-local ones.
func (c *Conn) Addrs(index int) ([]netip.Prefix, error) {
	return c.addrs(index, func(a netip.Addr) bool { return !a.IsLinkLocalUnicast() })
}

// AllAddrs lists the IP addresses of a link, also link-local ones.
func (c *Conn) AllAddrs(index int) ([]netip.Prefix, error) {
	return c.addrs(index, func(netip.Addr) bool { return true })
}

// AddrsByLink lists the IP addresses of all links, by their indexes.
func (c *Conn) AddrsByLink() (map[int][]netip.Prefix, error) {
	found := map[int][]netip.Prefix{}
	err := c.eachAddr(func(link int, p netip.Prefix) { found[link] = append(found[link], p) })
	return found, err
}

// Quieten keeps the host from using a link for IPv6 from now on: the kernel assigns no further
// address to it, and Quieten removes its link-local addresses. It does nothing if the kernel does
// not run IPv6.
func (c *Conn) Quieten(index int) error {
	if err := c.SetQuiet(index); err != nil {
		return err
	}
	addrs, err := c.addrs(index, func(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() })
	for _, a := range addrs {
		err = errors.Join(err, c.DeleteAddr(index, a))
	}
	return err
}

// LinkWith returns the index of the link that has an IP address; 0 for none.
func (c *Conn) LinkWith(a netip.Addr) (index int, err error) {
	err = c.eachAddr(func(link int, p netip.Prefix) {
		if p.Addr() == a {
			index = link
		}
	})
	return index, err
}

// addrs lists the addresses of a link for which keep returns true.
func (c *Conn) addrs(index int, keep func(netip.Addr) bool) (found []netip.Prefix, err error) {
	err = c.eachAddr(func(link int, p netip.Prefix) {
		if link == index && keep(p.Addr()) {
			found = append(found, p)
		}
	})
	return found, err
}

// eachAddr calls f with each address of the host, and the index of the link that has it.
func (c *Conn) eachAddr(f func(link int, p netip.Prefix)) error {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		return req
	}, unix.RTM_NEWADDR)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfAddrmsg {
			return fmt.Errorf("netlink address message of %d bytes", len(m))
		}
		index, bits := int(binary.NativeEndian.Uint32(m[4:])), int(m[1])
		each(m[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
			a, ok := netip.AddrFromSlice(v)
			local := kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && a.Is6()
			if ok && local {
				f(index, netip.PrefixFrom(a, bits))
			}
		})
	}
	return nil
}

// An FDBEntry is a MAC address that a bridge has learned behind a port, or that was added to its
// FDB.
type FDBEntry struct {
	MAC    net.HardwareAddr
	Port   int // index of the port's link
	VLAN   int // 0 for none
	Static bool
}

// sizeofNdmsg is the size of struct ndmsg (include/uapi/linux/neighbour.h).
const sizeofNdmsg = 12

// FDB lists the entries of a bridge's forwarding database or, if port is not 0, only those of that
// port. It omits the addresses of the bridge itself and of its ports. The request carries struct
// ifinfomsg, as older versions of bridge(8) sent it: without strict checking, the kernel filters by
// port only then (rtnl_fdb_dump).
func (c *Conn) FDB(bridge, port int) ([]FDBEntry, error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(port)
		req.AddData(msg)
		req.AddData(Master(bridge).rta)
		return req
	}, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, fmt.Errorf("list the FDB: %w", err)
	}
	var found []FDBEntry
	for _, m := range msgs {
		if len(m) < sizeofNdmsg {
			return nil, fmt.Errorf("netlink FDB message of %d bytes", len(m))
		}
		state := binary.NativeEndian.Uint16(m[8:])
		e := FDBEntry{Port: int(binary.NativeEndian.Uint32(m[4:])), Static: state&unix.NUD_NOARP != 0}
		master := 0
		each(m[sizeofNdmsg:], func(kind uint16, v []byte) {
			switch kind {
			case unix.NDA_LLADDR:
				e.MAC = net.HardwareAddr(append([]byte(nil), v...))
			case unix.NDA_VLAN:
				if len(v) >= 2 {
					e.VLAN = int(binary.NativeEndian.Uint16(v))
				}
			case unix.NDA_MASTER:
				master = int(u32(v))
			}
		})
		if state&unix.NUD_PERMANENT == 0 && master == bridge && (port == 0 || port == e.Port) {
			found = append(found, e)
		}
	}
	return found, nil
}
