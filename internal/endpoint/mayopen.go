package endpoint

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/sockopt"
)

// MayOpenPacket returns why PacketFiles cannot work in ns for any device, or nil: a capability or
// nf_tables is missing. It changes nothing: it sends only the claim's table, without the end of the
// batch, and the kernel rolls that back (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
func MayOpenPacket(ns *netns.NS) error {
	packet, netfilter := -1, -1
	err := ns.Do(func() (err error) {
		if packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("packet socket: %w (needs CAP_NET_RAW)", err)
		}
		netfilter, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if packet >= 0 {
		_ = unix.Close(packet)
	}
	if err != nil {
		return err
	}
	defer unix.Close(netfilter)
	if err := tryTable(netfilter); err != nil {
		return explainClaim("devices", err)
	}
	return nil
}

// tryTable is makeClaim without the chain and without effect.
func tryTable(fd int) error {
	if err := sockopt.SetReceiveTimeout(fd, claimWait); err != nil {
		return err
	}
	const first, last = 1, 2 // the messages' numbers
	begin := nfMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	table := nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE,
		unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE, unix.NFPROTO_NETDEV, 0,
		nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated("vmnet-try")),
		nl.NewRtAttr(unix.NFTA_TABLE_FLAGS, be32(tableOwner)))
	begin.Seq, table.Seq = first, last
	if err := unix.Sendto(fd, append(begin.Serialize(), table.Serialize()...), 0,
		&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	_, err := acknowledged(fd, last)
	return err
}
