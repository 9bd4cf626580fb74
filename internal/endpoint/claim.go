package endpoint

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
	"vmnet/internal/kernel/sockopt"
)

// NFT_TABLE_F_OWNER from include/uapi/linux/netfilter/nf_tables.h, and NF_DROP from
// include/uapi/linux/netfilter.h.
const (
	tableOwner = 2
	policyDrop = 0
)

// claimWait limits the wait for a reply of nf_tables.
const claimWait = 5 * time.Second

// releaseWait is how long a claim of somebody else may last. systemd, which may have a copy of the
// claim of a port that was just removed, closes it in its own time.
const releaseWait = time.Second

// claimPriority places the claim before other chains at the same hook.
const claimPriority = -500

// claimDevice keeps a device's incoming frames from the kernel's stack: from its addresses,
// bridges, VLANs and routes. A packet socket receives each frame earlier (__netif_receive_skb_core
// in net/core/dev.c: ptype_all, then nf_ingress, then everything else).
//
// The claim is an nftables table of family netdev. It has one chain without rules at the hook
// ingress, whose policy is drop. The table belongs to the netlink socket that made it
// (NFT_TABLE_F_OWNER, Linux 5.12). No other socket may change it, not even by flushing the ruleset,
// and the kernel removes it when the last copy of the socket is closed. The table's name has the
// device's name in it, so that two switches cannot claim one device. device must be the device's
// own name, not an altname.
func claimDevice(ns *netns.NS, device string) (*os.File, error) {
	for end := time.Now().Add(releaseWait); ; time.Sleep(10 * time.Millisecond) {
		f, err := tryClaim(ns, device)
		if !errors.Is(err, unix.EEXIST) || time.Now().After(end) {
			return f, err
		}
	}
}

// tryClaim is claimDevice without waiting.
func tryClaim(ns *netns.NS, device string) (*os.File, error) {
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

// CheckClaim checks that a file can be a claim. Only its maker knows whether it is one, and is
// responsible for that.
func CheckClaim(fd int) error {
	return sockopt.CheckNetlink(fd, unix.NETLINK_NETFILTER, "NETLINK_NETFILTER")
}

func explainClaim(device string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, unix.EEXIST):
		cure = " (another switch has the device)"
	case errors.Is(err, unix.EPERM):
		cure = " (needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOENT):
		cure = " (needs Linux 5.12 with nf_tables and CONFIG_NF_TABLES_NETDEV: modprobe nf_tables)"
	}
	return fmt.Errorf("keep the frames of %s from the host's own stack: %w%s", device, err, cure)
}

// makeClaim creates the table and the chain in one transaction, which nf_tables applies as a whole
// or not at all.
func makeClaim(fd int, device string) error {
	if err := sockopt.SetReceiveTimeout(fd, claimWait); err != nil {
		return err
	}
	name := ClaimTable + device
	const create = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	failed, err := transact(fd,
		nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, create, unix.NFPROTO_NETDEV, 0,
			nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)),
			nl.NewRtAttr(unix.NFTA_TABLE_FLAGS, be32(tableOwner))),
		nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN, create, unix.NFPROTO_NETDEV, 0,
			ingressChain(name, claimChain, device)...))
	if failed == 0 && errors.Is(err, unix.EPERM) { // the table belongs to another socket
		err = unix.EEXIST
	}
	return err
}

// ingressChain describes a chain that drops a device's incoming frames unless its rules decide
// otherwise.
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

// transact has nf_tables apply messages as a whole or not at all. failed is the index of the
// message that err is about, or -1.
func transact(fd int, messages ...*nl.NetlinkRequest) (failed int, err error) {
	all := []*nl.NetlinkRequest{nfMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC,
		unix.NFNL_SUBSYS_NFTABLES)}
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

// ClaimTable is the prefix of a claim's table name. The device's name follows.
const ClaimTable = "vmnet-switch-"

// claimChain is the name of the chain that keeps the device's frames from the kernel's stack.
const claimChain = "ingress"

// Claimed reports whether a switch has claimed a device, so that the kernel's stack receives none
// of its frames. device is its own name, not an altname. Claimed needs CAP_NET_ADMIN in ns. On a
// kernel without nf_tables it returns false.
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
	if err := sockopt.SetReceiveTimeout(fd, claimWait); err != nil {
		return false, err
	}
	get := nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_REQUEST|unix.NLM_F_ACK,
		unix.NFPROTO_NETDEV, 0,
		nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(ClaimTable+device)))
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

// nfMessage builds a message of nfnetlink (include/uapi/linux/netfilter/nfnetlink.h).
func nfMessage(kind, flags int, family byte, resource uint16, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	m := &nl.NetlinkRequest{NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: uint16(kind), Flags: uint16(flags)}}
	m.AddData(&nl.Nfgenmsg{
		NfgenFamily: family, Version: unix.NFNETLINK_V0,
		ResId: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, resource)),
	})
	for _, a := range attrs {
		m.AddData(a)
	}
	return m
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// acknowledged reads replies until that to message last, or an error. seq is the message that the
// reply is for.
func acknowledged(fd int, last uint32) (seq uint32, err error) {
	b := make([]byte, 16<<10)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the reply of nf_tables: %w", err)
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not the kernel
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			return 0, fmt.Errorf("parse the reply of nf_tables: %w", err)
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
