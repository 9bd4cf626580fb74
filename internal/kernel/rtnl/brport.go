package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VLANs is a range of VLANs that a bridge port is a member of.
type VLANs struct {
	First, Last int
	PVID        bool // incoming untagged frames belong to it; only for a range of one
	Untagged    bool // its frames leave without a tag

	// Tunnel is the VNI to which a port with VLANTunnel maps First; the next VLAN has the next VNI.
	// 0 for none.
	Tunnel int
}

// PortChange is what SetPort changes on a bridge port.
type PortChange struct {
	PortFlags
	From  *PortFlags // the flags as they were read; SetPort sends only those that change, or all if nil
	Flush bool       // forget the addresses learned behind the port
	VLANs []VLANs    // to join; if the port is a member already, PVID and Untagged change
}

// SetPort changes a bridge port with one message, RTM_SETLINK of AF_BRIDGE: br_setlink
// (net/bridge/br_netlink.c) sets the flags of IFLA_PROTINFO before the VLANs of IFLA_AF_SPEC. The
// port stays a member of all other VLANs.
func (c *Conn) SetPort(index int, p PortChange) error {
	req := c.portRequest(unix.RTM_SETLINK, index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	from := p.From.byKind()
	for kind, value := range p.byKind() {
		if was, known := from[kind]; !known || !bytes.Equal(was, value) {
			info.AddRtAttr(kind, value)
		}
	}
	if p.Flush {
		info.AddRtAttr(nl.IFLA_BRPORT_FLUSH, nil)
	}
	req.AddData(info)
	if len(p.VLANs) > 0 {
		req.AddData(vlanSpec(p.VLANs))
	}
	return c.do(req)
}

// SetPortState sets the state of a bridge port that is up. On a bridge that runs STP, the kernel
// refuses with EBUSY (br_set_port_state).
func (c *Conn) SetPortState(index int, s PortState) error {
	req := c.portRequest(unix.RTM_SETLINK, index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{byte(s)})
	req.AddData(info)
	return c.do(req)
}

// byKind returns the values of the flags by IFLA_BRPORT_*; nil if f is nil.
func (f *PortFlags) byKind() map[int][]byte {
	if f == nil {
		return nil
	}
	return map[int][]byte{
		nl.IFLA_BRPORT_MODE: boolByte(f.Hairpin), nl.IFLA_BRPORT_ISOLATED: boolByte(f.Isolated),
		nl.IFLA_BRPORT_LEARNING: boolByte(f.Learning), nl.IFLA_BRPORT_UNICAST_FLOOD: boolByte(f.Flood),
		nl.IFLA_BRPORT_GROUP_FWD_MASK: binary.NativeEndian.AppendUint16(nil, f.Forward),
		nl.IFLA_BRPORT_MCAST_FLOOD:    boolByte(!f.NoMulticast), nl.IFLA_BRPORT_BCAST_FLOOD: boolByte(!f.NoBroadcast),
		nl.IFLA_BRPORT_LOCKED: boolByte(f.Locked),
	}
}

// AddPortVLANs makes a bridge port a member of VLANs, with their tunnels. If a VLAN has a tunnel,
// or another VLAN of the port has that one, the kernel answers EEXIST (__vlan_tunnel_info_add).
func (c *Conn) AddPortVLANs(index int, vlans []VLANs) error {
	req := c.portRequest(unix.RTM_SETLINK, index)
	req.AddData(vlanSpec(vlans))
	return c.do(req)
}

// DeletePortVLANs removes a bridge port from VLANs, which lose their tunnels. It is no error if the
// port is not a member (br_vlan_info ignores that). The bridge forgets the addresses that it
// learned behind the port in these VLANs.
func (c *Conn) DeletePortVLANs(index int, vlans []VLANs) error {
	req := c.portRequest(unix.RTM_DELLINK, index)
	req.AddData(vlanSpec(vlans))
	return c.do(req)
}

// AddBridgeVLANs makes a bridge itself a member of VLANs: what a subinterface on it needs.
func (c *Conn) AddBridgeVLANs(index int, vlans []VLANs) error {
	return c.bridgeVLANs(unix.RTM_SETLINK, index, vlans)
}

// DeleteBridgeVLANs undoes AddBridgeVLANs. It is no error if the bridge is not a member.
func (c *Conn) DeleteBridgeVLANs(index int, vlans []VLANs) error {
	return c.bridgeVLANs(unix.RTM_DELLINK, index, vlans)
}

// bridgeVLANs sends a request to the bridge itself (BRIDGE_FLAGS_SELF). For an entry of its own, it
// must also be marked as one of the bridge device (BRIDGE_VLAN_INFO_BRENTRY, br_vlan_add).
func (c *Conn) bridgeVLANs(kind, index int, vlans []VLANs) error {
	const entry = 1 << 5 // BRIDGE_VLAN_INFO_BRENTRY, include/uapi/linux/if_bridge.h
	req := c.portRequest(kind, index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	spec.AddRtAttr(nl.IFLA_BRIDGE_FLAGS, nl.Uint16Attr(nl.BRIDGE_FLAGS_SELF))
	for _, v := range vlans {
		for vid := v.First; vid <= v.Last; vid++ {
			spec.AddRtAttr(nl.IFLA_BRIDGE_VLAN_INFO, vlanInfo(entry, vid))
		}
	}
	req.AddData(spec)
	return c.do(req)
}

// portRequest makes a request to the bridge of which the link is a port
// (rtnl_bridge_setlink and rtnl_bridge_dellink in net/core/rtnetlink.c).
func (c *Conn) portRequest(kind, index int) *nl.NetlinkRequest {
	req := c.request(kind, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// vlanSpec returns IFLA_AF_SPEC with a struct bridge_vlan_info for each VLAN, or for both ends of a
// range, and what says their tunnels. A range of one VLAN must be sent as one
// (br_process_vlan_info, and br_process_vlan_tunnel_info).
func vlanSpec(vlans []VLANs) *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	for _, v := range vlans {
		var flags uint16
		if v.PVID {
			flags |= nl.BRIDGE_VLAN_INFO_PVID
		}
		if v.Untagged {
			flags |= nl.BRIDGE_VLAN_INFO_UNTAGGED
		}
		v.ends(func(end uint16, vid, _ int) {
			spec.AddRtAttr(nl.IFLA_BRIDGE_VLAN_INFO, vlanInfo(flags|end, vid))
		})
		if v.Tunnel == 0 {
			continue
		}
		v.ends(func(end uint16, vid, tunnel int) {
			info := spec.AddRtAttr(nl.IFLA_BRIDGE_VLAN_TUNNEL_INFO|unix.NLA_F_NESTED, nil)
			info.AddRtAttr(nl.IFLA_BRIDGE_VLAN_TUNNEL_ID, nl.Uint32Attr(uint32(tunnel)))
			info.AddRtAttr(nl.IFLA_BRIDGE_VLAN_TUNNEL_VID, nl.Uint16Attr(uint16(vid)))
			info.AddRtAttr(nl.IFLA_BRIDGE_VLAN_TUNNEL_FLAGS, nl.Uint16Attr(end))
		})
	}
	return spec
}

// ends calls add with both ends of a range and their flags, or with the VLAN of a range of one.
func (v VLANs) ends(add func(flags uint16, vid, tunnel int)) {
	if v.First == v.Last {
		add(0, v.First, v.Tunnel)
		return
	}
	add(nl.BRIDGE_VLAN_INFO_RANGE_BEGIN, v.First, v.Tunnel)
	add(nl.BRIDGE_VLAN_INFO_RANGE_END, v.Last, v.Tunnel+v.Last-v.First)
}

// vlanInfo returns a struct bridge_vlan_info (include/uapi/linux/if_bridge.h).
func vlanInfo(flags uint16, vid int) []byte {
	b := binary.NativeEndian.AppendUint16(nil, flags)
	return binary.NativeEndian.AppendUint16(b, uint16(vid))
}

// The attributes of RTM_NEWVLAN (include/uapi/linux/if_bridge.h).
const (
	vlandbEntry      = 1 // BRIDGE_VLANDB_ENTRY
	vlandbEntryInfo  = 1 // BRIDGE_VLANDB_ENTRY_INFO
	vlandbEntryRange = 2 // BRIDGE_VLANDB_ENTRY_RANGE

	vlandbEntryTunnel = 4 // BRIDGE_VLANDB_ENTRY_TUNNEL_INFO, Linux 5.7
	vlandbTunnelID    = 1 // BRIDGE_VLANDB_TINFO_ID
)

// PortVLANs reads the VLANs of one bridge port or, if index is 0, of every bridge and port. The
// result is by the index of the link. A kernel without CONFIG_BRIDGE_VLAN_FILTERING answers
// EOPNOTSUPP. It sends RTM_GETVLAN, since the older RTM_GETLINK of AF_BRIDGE cannot be limited to
// one port (rtnl_bridge_getlink).
func (c *Conn) PortVLANs(index int) (map[int][]VLANs, error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETVLAN, unix.NLM_F_DUMP)
		req.AddData(&brVLANMsg{index})
		return req
	}, unix.RTM_NEWVLAN)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("read the VLANs of bridge ports: %w (needs Linux 5.6 with CONFIG_BRIDGE_VLAN_FILTERING)",
			err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the VLANs of bridge ports: %w", notExist(err))
	}
	found := map[int][]VLANs{}
	for _, m := range msgs {
		if len(m) < sizeofBrVLANMsg {
			return nil, fmt.Errorf("netlink VLAN message of %d bytes", len(m))
		}
		port := int(u32(m[4:]))
		each(m[sizeofBrVLANMsg:], func(kind uint16, v []byte) {
			if kind == vlandbEntry {
				found[port] = append(found[port], parseVLANs(v))
			}
		})
	}
	return found, nil
}

func parseVLANs(b []byte) VLANs {
	var v VLANs
	each(b, func(kind uint16, b []byte) {
		switch {
		case kind == vlandbEntryInfo && len(b) >= 4:
			flags := binary.NativeEndian.Uint16(b)
			v.First = int(binary.NativeEndian.Uint16(b[2:]))
			v.Last = max(v.Last, v.First)
			v.PVID = flags&nl.BRIDGE_VLAN_INFO_PVID != 0
			v.Untagged = flags&nl.BRIDGE_VLAN_INFO_UNTAGGED != 0
		case kind == vlandbEntryRange && len(b) >= 2:
			v.Last = int(binary.NativeEndian.Uint16(b))
		case kind == vlandbEntryTunnel:
			each(b, func(kind uint16, b []byte) {
				if kind == vlandbTunnelID {
					v.Tunnel = int(u32(b))
				}
			})
		}
	})
	return v
}

// brVLANMsg is struct br_vlan_msg (include/uapi/linux/if_bridge.h).
type brVLANMsg struct{ index int }

const sizeofBrVLANMsg = 8

func (*brVLANMsg) Len() int { return sizeofBrVLANMsg }

func (m *brVLANMsg) Serialize() []byte {
	b := make([]byte, 4, sizeofBrVLANMsg)
	b[0] = unix.AF_BRIDGE
	return binary.NativeEndian.AppendUint32(b, uint32(m.index))
}

func boolByte(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}
