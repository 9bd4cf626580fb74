package endpoint

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftables rules of the family netdev (include/uapi/linux/netfilter/nf_tables.h).

const nfCreate = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE

// nfRule builds the message that appends a rule with those expressions to a chain.
func nfRule(table, chain string, expressions ...[]*nl.RtAttr) *nl.NetlinkRequest {
	list := nl.NewRtAttr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, nil)
	for _, some := range expressions {
		for _, e := range some {
			list.AddChild(e)
		}
	}
	return nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, nfCreate|unix.NLM_F_APPEND,
		unix.NFPROTO_NETDEV, 0,
		nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(table)),
		nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)),
		list)
}

// nfForward forwards the packet to a device, which ends the evaluation of the rules.
func nfForward(index int) []*nl.RtAttr {
	return []*nl.RtAttr{
		nfExpression("immediate",
			nl.NewRtAttr(unix.NFTA_IMMEDIATE_DREG, be32(unix.NFT_REG_1)),
			nfData(unix.NFTA_IMMEDIATE_DATA, nl.Uint32Attr(uint32(index)))),
		nfExpression("fwd", nl.NewRtAttr(unix.NFTA_FWD_SREG_DEV, be32(unix.NFT_REG_1))),
	}
}

// nfIsIP matches packets of that EtherType that have the byte protocol at offset at in their
// network header.
func nfIsIP(kind uint16, at uint32, protocol byte) []*nl.RtAttr {
	return []*nl.RtAttr{
		nfExpression("meta",
			nl.NewRtAttr(unix.NFTA_META_DREG, be32(unix.NFT_REG_1)),
			nl.NewRtAttr(unix.NFTA_META_KEY, be32(unix.NFT_META_PROTOCOL))),
		nfEqual(byte(kind>>8), byte(kind)),
		nfExpression("payload",
			nl.NewRtAttr(unix.NFTA_PAYLOAD_DREG, be32(unix.NFT_REG_1)),
			nl.NewRtAttr(unix.NFTA_PAYLOAD_BASE, be32(unix.NFT_PAYLOAD_NETWORK_HEADER)),
			nl.NewRtAttr(unix.NFTA_PAYLOAD_OFFSET, be32(at)),
			nl.NewRtAttr(unix.NFTA_PAYLOAD_LEN, be32(1))),
		nfEqual(protocol),
	}
}

// nfEqual matches if the register has that value.
func nfEqual(value ...byte) *nl.RtAttr {
	return nfExpression("cmp",
		nl.NewRtAttr(unix.NFTA_CMP_SREG, be32(unix.NFT_REG_1)),
		nl.NewRtAttr(unix.NFTA_CMP_OP, be32(unix.NFT_CMP_EQ)),
		nfData(unix.NFTA_CMP_DATA, value))
}

func nfExpression(name string, attrs ...*nl.RtAttr) *nl.RtAttr {
	data := nl.NewRtAttr(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, nil)
	for _, a := range attrs {
		data.AddChild(a)
	}
	e := nl.NewRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, nil)
	e.AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(name))
	e.AddChild(data)
	return e
}

func nfData(kind int, value []byte) *nl.RtAttr {
	d := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	d.AddRtAttr(unix.NFTA_DATA_VALUE, value)
	return d
}
