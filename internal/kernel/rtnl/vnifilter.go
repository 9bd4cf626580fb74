package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VNIs is a range of VNIs in the filter of a VXLAN device.
type VNIs struct{ First, Last int }

// The types of messages about the filter, and their attributes (include/uapi/linux/rtnetlink.h,
// include/uapi/linux/if_link.h; Linux 5.18).
const (
	rtmNewTunnel = 120 // RTM_NEWTUNNEL
	rtmDelTunnel = 121 // RTM_DELTUNNEL

	vniFilterEntry      = 1 // VXLAN_VNIFILTER_ENTRY
	vniFilterEntryStart = 1 // VXLAN_VNIFILTER_ENTRY_START
	vniFilterEntryEnd   = 2 // VXLAN_VNIFILTER_ENTRY_END
)

// VNIs lists the filter of a VXLAN device with VNIFilter.
func (c *Conn) VNIs(index int) (found []VNIs, err error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETTUNNEL, unix.NLM_F_DUMP)
		req.AddData(tunnelMsg(index))
		return req
	}, rtmNewTunnel)
	if err != nil {
		return nil, fmt.Errorf("list the VNIs of a VXLAN device: %w", notExist(err))
	}
	for _, m := range msgs {
		if len(m) < sizeofBrVLANMsg || int(u32(m[4:])) != index {
			continue
		}
		each(m[sizeofBrVLANMsg:], func(kind uint16, v []byte) {
			if kind == vniFilterEntry {
				found = append(found, parseVNIs(v))
			}
		})
	}
	return found, nil
}

// parseVNIs decodes an entry, which has no end if it is of one VNI.
func parseVNIs(b []byte) (v VNIs) {
	each(b, func(kind uint16, b []byte) {
		switch kind {
		case vniFilterEntryStart:
			v.First = int(u32(b))
		case vniFilterEntryEnd:
			v.Last = int(u32(b))
		}
	})
	v.Last = max(v.First, v.Last)
	return v
}

// AddVNIs adds VNIs to the filter of a VXLAN device. It is no error if they are there. If a device
// of the same UDP port has one of them, the kernel answers EEXIST (vxlan_vni_add).
func (c *Conn) AddVNIs(index int, vnis []VNIs) error { return c.vnis(rtmNewTunnel, index, vnis) }

// DeleteVNIs removes VNIs from the filter. If one is not there, the kernel answers ENOENT, and what
// follows it stays.
func (c *Conn) DeleteVNIs(index int, vnis []VNIs) error { return c.vnis(rtmDelTunnel, index, vnis) }

func (c *Conn) vnis(kind, index int, vnis []VNIs) error {
	req := c.request(kind, unix.NLM_F_ACK)
	req.AddData(tunnelMsg(index))
	for _, v := range vnis {
		entry := nl.NewRtAttr(vniFilterEntry|unix.NLA_F_NESTED, nil)
		entry.AddRtAttr(vniFilterEntryStart, nl.Uint32Attr(uint32(v.First)))
		entry.AddRtAttr(vniFilterEntryEnd, nl.Uint32Attr(uint32(v.Last)))
		req.AddData(entry)
	}
	return c.do(req)
}

// tunnelMsg returns a struct tunnel_msg (include/uapi/linux/if_link.h) of family AF_BRIDGE, which
// looks like a struct br_vlan_msg.
func tunnelMsg(index int) *brVLANMsg { return &brVLANMsg{index} }
