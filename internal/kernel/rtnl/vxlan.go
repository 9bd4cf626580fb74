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

	// VNIFilter says that an External device receives frames of the VNIs in its filter only, and so
	// shares its UDP port with others (IFLA_VXLAN_VNIFILTER, Linux 5.18).
	VNIFilter bool
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
		case unix.IFLA_VXLAN_VNIFILTER:
			v.VNIFilter = u8(b) != 0
		}
	})
	return v
}

// vxlanTTL is the TTL of outer packets, which lets them cross routers. With 0 the kernel takes 1
// for a multicast destination, and the hop limit of the route for others (vxlan_xmit_one in
// drivers/net/vxlan).
const vxlanTTL = 64

// NewVXLAN returns the settings of a new VXLAN device. An older kernel ignores VNIFilter.
func NewVXLAN(v VXLAN) []Attr {
	kind, local := nl.IFLA_VXLAN_LOCAL, v.Local.AsSlice()
	if v.Local.Is6() {
		kind = nl.IFLA_VXLAN_LOCAL6
	}
	which := []Attr{infoAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(v.VNI)))}
	if v.External {
		which = []Attr{
			infoAttr(nl.IFLA_VXLAN_FLOWBASED, boolByte(true)),
			infoAttr(unix.IFLA_VXLAN_VNIFILTER, boolByte(v.VNIFilter)),
		}
	}
	return append(
		which,
		infoAttr(kind, local),
		infoAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(v.Port))),
		infoAttr(nl.IFLA_VXLAN_TTL, []byte{vxlanTTL}),
		infoAttr(nl.IFLA_VXLAN_LEARNING, boolByte(v.Learning)),
	)
}

// A RemoteEntry is an entry of a VXLAN device's own FDB: frames to MAC go to the host Dst.
type RemoteEntry struct {
	MAC       net.HardwareAddr // all zero: broadcasts, and frames to unknown addresses
	Dst       netip.Addr
	VNI       int  // of an External device, to which the entry belongs; 0 of others
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
		case unix.NDA_SRC_VNI:
			e.VNI = int(u32(v))
		}
	})
	return e, e.Dst.IsValid() && len(e.MAC) == 6
}

// A Flood is a host to which a VXLAN device sends broadcasts and frames to unknown addresses.
type Flood struct {
	VNI int // of an External device, whose frames it gets; 0 of others
	Dst netip.Addr
}

// AddFlood makes a VXLAN device send broadcasts and frames to unknown addresses to a host, too. It
// is no error if it does so already.
func (c *Conn) AddFlood(index int, f Flood) error {
	return c.flood(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, index, f)
}

// DeleteFlood undoes AddFlood.
func (c *Conn) DeleteFlood(index int, f Flood) error { return c.flood(unix.RTM_DELNEIGH, 0, index, f) }

func (c *Conn) flood(kind, flags, index int, f Flood) error {
	req := c.request(kind, flags|unix.NLM_F_ACK)
	req.AddData(&ndmsg{
		family: unix.AF_BRIDGE, index: int32(index), state: unix.NUD_PERMANENT | unix.NUD_NOARP, flags: unix.NTF_SELF,
	})
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, make([]byte, 6)))
	req.AddData(nl.NewRtAttr(unix.NDA_DST, f.Dst.AsSlice()))
	if f.VNI != 0 {
		req.AddData(nl.NewRtAttr(unix.NDA_SRC_VNI, nl.Uint32Attr(uint32(f.VNI))))
	}
	return c.do(req)
}

// SetNeighSuppress says whether a bridge answers ARP and ND requests itself rather than send them
// out of that port, for the neighbors that it knows (IFLA_BRPORT_NEIGH_SUPPRESS, Linux 4.15).
func (c *Conn) SetNeighSuppress(index int, on bool) error {
	return c.setPortFlag(index, nl.IFLA_BRPORT_NEIGH_SUPPRESS, on)
}

// SetVLANTunnel says whether a bridge port, a VXLAN device, carries each VLAN in the tunnel that
// VLANs.Tunnel names (IFLA_BRPORT_VLAN_TUNNEL, Linux 4.11). Off, the port forgets all of them.
func (c *Conn) SetVLANTunnel(index int, on bool) error {
	return c.setPortFlag(index, nl.IFLA_BRPORT_VLAN_TUNNEL, on)
}

func (c *Conn) setPortFlag(index, flag int, on bool) error {
	req := c.portRequest(unix.RTM_SETLINK, index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(flag, boolByte(on))
	req.AddData(info)
	return c.do(req)
}
