package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VXLAN is the data of a VXLAN device (IFLA_VXLAN_*).
type VXLAN struct {
	VNI      int
	Local    netip.Addr // invalid if it has none
	Port     int        // UDP
	Learning bool       // it adds the senders of received frames to its FDB
	External bool       // another program says per frame where to send it (IFLA_VXLAN_COLLECT_METADATA)
}

func parseVXLAN(b []byte) *VXLAN {
	v := &VXLAN{}
	each(b, func(kind uint16, b []byte) {
		switch kind {
		case nl.IFLA_VXLAN_ID:
			v.VNI = int(u32(b))
		case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
			if a, ok := netip.AddrFromSlice(b); ok && !a.IsUnspecified() {
				v.Local = a
			}
		case nl.IFLA_VXLAN_PORT:
			if len(b) >= 2 {
				v.Port = int(binary.BigEndian.Uint16(b))
			}
		case nl.IFLA_VXLAN_LEARNING:
			v.Learning = u8(b) != 0
		case nl.IFLA_VXLAN_FLOWBASED:
			v.External = u8(b) != 0
		}
	})
	return v
}

// vxlanTTL is the TTL of outer packets, which lets them cross routers. With 0 the kernel takes 1
// for a multicast destination, and the hop limit of the route for others (vxlan_xmit_one in
// drivers/net/vxlan).
const vxlanTTL = 64

// NewVXLAN returns the settings of a new VXLAN device.
func NewVXLAN(v VXLAN) []Attr {
	kind, local := nl.IFLA_VXLAN_LOCAL, v.Local.AsSlice()
	if v.Local.Is6() {
		kind = nl.IFLA_VXLAN_LOCAL6
	}
	return []Attr{
		infoAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(v.VNI))),
		infoAttr(kind, local),
		infoAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(v.Port))),
		infoAttr(nl.IFLA_VXLAN_TTL, []byte{vxlanTTL}),
		infoAttr(nl.IFLA_VXLAN_LEARNING, boolByte(v.Learning)),
	}
}

// A RemoteEntry is an entry of a VXLAN device's own FDB: frames to MAC go to the host Dst.
type RemoteEntry struct {
	MAC       net.HardwareAddr // all zero: broadcasts, and frames to unknown addresses
	Dst       netip.Addr
	Permanent bool // it does not age
	External  bool // another program has added it, as FRR does (NTF_EXT_LEARNED)
}

// IsFlood reports whether broadcasts go to the host.
func (e RemoteEntry) IsFlood() bool {
	for _, b := range e.MAC {
		if b != 0 {
			return false
		}
	}
	return true
}

// RemoteFDB lists the entries of a VXLAN device's own FDB (vxlan_fdb_dump).
func (c *Conn) RemoteFDB(index int) ([]RemoteEntry, error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(index)
		req.AddData(msg)
		return req
	}, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, fmt.Errorf("list the FDB of a VXLAN device: %w", err)
	}
	var found []RemoteEntry
	for _, m := range msgs {
		if e, ok := parseRemote(m, index); ok {
			found = append(found, e)
		}
	}
	return found, nil
}

// parseRemote decodes a message with struct ndmsg; ok is false for an entry of the bridge and for
// one of another device.
func parseRemote(m []byte, index int) (e RemoteEntry, ok bool) {
	const extLearned = 1 << 4 // NTF_EXT_LEARNED, include/uapi/linux/neighbour.h
	if len(m) < sizeofNdmsg || int(binary.NativeEndian.Uint32(m[4:])) != index {
		return e, false
	}
	e.Permanent = binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT != 0
	e.External = m[10]&extLearned != 0
	each(m[sizeofNdmsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_LLADDR:
			e.MAC = net.HardwareAddr(append([]byte(nil), v...))
		case unix.NDA_DST:
			e.Dst, _ = netip.AddrFromSlice(v)
		}
	})
	return e, e.Dst.IsValid() && len(e.MAC) == 6
}

// AddFlood makes a VXLAN device send broadcasts and frames to unknown addresses to dst too. It is
// no error if it does so already.
func (c *Conn) AddFlood(index int, dst netip.Addr) error {
	return c.flood(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, index, dst)
}

// DeleteFlood undoes AddFlood.
func (c *Conn) DeleteFlood(index int, dst netip.Addr) error {
	return c.flood(unix.RTM_DELNEIGH, 0, index, dst)
}

func (c *Conn) flood(kind, flags, index int, dst netip.Addr) error {
	req := c.request(kind, flags|unix.NLM_F_ACK)
	req.AddData(&ndmsg{
		family: unix.AF_BRIDGE, index: int32(index), state: unix.NUD_PERMANENT | unix.NUD_NOARP, flags: unix.NTF_SELF,
	})
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, make([]byte, 6)))
	req.AddData(nl.NewRtAttr(unix.NDA_DST, dst.AsSlice()))
	return c.do(req)
}

// SetNeighSuppress says whether a bridge answers ARP and ND requests itself rather than send them
// out of that port, for the neighbors that it knows (IFLA_BRPORT_NEIGH_SUPPRESS, Linux 4.15).
func (c *Conn) SetNeighSuppress(index int, on bool) error {
	req := c.portRequest(unix.RTM_SETLINK, index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_NEIGH_SUPPRESS, boolByte(on))
	req.AddData(info)
	return c.do(req)
}
