package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// NFT_TABLE_F_OWNER of include/uapi/linux/netfilter/nf_tables.h, and NF_DROP of include/uapi/linux/netfilter.h.
const (
	tableOwner = 2
	policyDrop = 0
)

// claimWait bounds the wait for nf_tables.
const claimWait = 5 * time.Second

// claimPriority puts the claim in front of other chains at the same hook.
const claimPriority = -500

// claimDevice keeps what comes in by a device from the kernel's stack: from its addresses, bridges, VLANs and routes. A packet
// socket gets each frame before that (__netif_receive_skb_core in net/core/dev.c: ptype_all, then nf_ingress, then
// everything else).
//
// It is an nftables table of family netdev with one chain at the hook ingress, whose policy is drop, and that has no
// rule. The table belongs to the netlink socket that made it (NFT_TABLE_F_OWNER, Linux 5.12): nobody else may change it, not
// even by flushing the rule set, and it goes with the last copy of the socket, however its holders end. That
// two switches do not claim one device follows from its name; device must be the name proper, no altname.
func claimDevice(ns *netns.NS, device string) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, explainClaim(device, err)
	}
	if err := makeClaim(fd, device); err != nil {
		return nil, explainClaim(device, errors.Join(err, unix.Close(fd)))
	}
	return os.NewFile(uintptr(fd), "claim of "+device), nil
}

// checkClaim tells whether a file can be a claim. Whether it is one nobody but its maker can tell; what comes of a wrong one is
// the maker's.
func checkClaim(fd int) error {
	if err := checkKind(fd, unix.AF_NETLINK, unix.SOCK_RAW, "a netlink socket"); err != nil {
		return err
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil && protocol != unix.NETLINK_NETFILTER {
		err = fmt.Errorf("netlink protocol %d: want that of netfilter", protocol)
	}
	return err
}

func explainClaim(device string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, unix.EEXIST):
		cure = " (another switch has the device)"
	case errors.Is(err, unix.EPERM):
		cure = " (needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		cure = " (needs Linux 5.12 with nf_tables and CONFIG_NF_TABLES_NETDEV: modprobe nf_tables)"
	}
	return fmt.Errorf("keep the frames of %s from the host's own stack: %w%s", device, err, cure)
}

// makeClaim sends table and chain in one transaction, which is applied as a whole or not at all.
func makeClaim(fd int, device string) error {
	timeout := unix.NsecToTimeval(int64(claimWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	name := claimTable + device
	const create = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	failed, err := transact(fd,
		nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, create, unix.NFPROTO_NETDEV, 0,
			nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)),
			nl.NewRtAttr(unix.NFTA_TABLE_FLAGS, be32(tableOwner))),
		nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN, create, unix.NFPROTO_NETDEV, 0, ingressChain(name, claimChain, device)...))
	if failed == 0 && errors.Is(err, unix.EPERM) { // the table belongs to another socket
		err = unix.EEXIST
	}
	return err
}

// ingressChain is a chain that drops what comes in by a device, but for what its rules say.
func ingressChain(table, chain, device string) []*nl.RtAttr {
	hook := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
	hook.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, be32(unix.NF_NETDEV_INGRESS))
	priority := claimPriority
	hook.AddRtAttr(unix.NFTA_HOOK_PRIORITY, be32(uint32(priority)))
	hook.AddRtAttr(unix.NFTA_HOOK_DEV, nl.ZeroTerminated(device))
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(table)),
		nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chain)),
		hook,
		nl.NewRtAttr(unix.NFTA_CHAIN_POLICY, be32(policyDrop)),
		nl.NewRtAttr(unix.NFTA_CHAIN_TYPE, nl.ZeroTerminated("filter")),
	}
}

// transact has nf_tables apply messages as a whole or not at all. With an error comes the number of the
// message that it is for, from 0 on; -1 where it is for none of them.
func transact(fd int, messages ...*nl.NetlinkRequest) (failed int, err error) {
	all := []*nl.NetlinkRequest{nfMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	all = append(all, messages...)
	all = append(all, nfMessage(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	var batch []byte
	for i, m := range all {
		m.Seq = uint32(i + 1)
		batch = append(batch, m.Serialize()...)
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, err
	}
	seq, err := acknowledged(fd, uint32(len(messages)+1))
	return int(seq) - 2, err
}

// claimTable is what the name of a claim's table begins with; the device's follows.
const claimTable = "vmnet-switch-"

// claimChain is the chain that keeps the device's frames from the kernel.
const claimChain = "ingress"

// Claimed reports whether a switch has claimed a device, by its name proper, so that nothing else
// of its kernel gets what comes in by it. It needs CAP_NET_ADMIN in ns. A kernel without nf_tables
// knows no claim.
func Claimed(ns *netns.NS, device string) (bool, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a claim of %s: %w", device, err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(claimWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return false, err
	}
	get := nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_REQUEST|unix.NLM_F_ACK, unix.NFPROTO_NETDEV, 0,
		nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(claimTable+device)))
	get.Seq = 1
	if err = unix.Sendto(fd, get.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
		_, err = acknowledged(fd, 1)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil // no such table, or no nf_tables
	}
	return false, fmt.Errorf("look for a claim of %s: %w", device, err)
}

// nfMessage is a message of nfnetlink (include/uapi/linux/netfilter/nfnetlink.h).
func nfMessage(kind, flags int, family byte, resource uint16, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	m := &nl.NetlinkRequest{NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: uint16(kind), Flags: uint16(flags)}}
	m.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0, ResId: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, resource))})
	for _, a := range attrs {
		m.AddData(a)
	}
	return m
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// acknowledged reads answers until that of message last, or an error, and tells which message it is for.
func acknowledged(fd int, last uint32) (seq uint32, err error) {
	b := make([]byte, 16<<10)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for nf_tables: %w", err)
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not the kernel
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			return 0, fmt.Errorf("answer of nf_tables: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			seq = m.Header.Seq
			if errno := int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
				return seq, unix.Errno(-errno)
			}
			if seq == last {
				return seq, nil
			}
		}
	}
}
