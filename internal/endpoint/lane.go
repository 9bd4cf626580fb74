package endpoint

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
)

// A lane is a tap beside the packet socket on a veth device. Package vswitch says what it is for
// (lane.go).

// laneName is the pattern of the taps' names, which the kernel fills in.
const laneName = "vmnet-lane%d"

// openLane makes a lane for a device, and returns the tap's queue and the IP protocols whose
// packets come by it. The packet socket then ignores those. The file is nil if the kernel lacks
// what a lane needs; the port then goes without.
func openLane(ns *netns.NS, socket, claim *os.File, d Device) (*os.File, []byte, error) {
	tap, err := tun.CreateLike(ns, laneName)
	if err != nil {
		return nil, nil, nil //nolint:nilerr // /dev/net/tun may be missing, in a container
	}
	queue := tap.Queues()[0]
	protocols, err := setLane(ns, int(socket.Fd()), int(claim.Fd()), queue, d)
	if err != nil {
		err = errors.Join(err, tap.Close())
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) { // no nft_fwd_netdev
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("make a tap beside the packet socket: %w", err)
	}
	return queue, protocols, nil
}

func setLane(ns *netns.NS, socket, claim int, queue *os.File, d Device) (protocols []byte, err error) {
	c, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	name, limits, err := SetTap(int(queue.Fd()))
	if err != nil {
		return nil, err
	}
	link, err := c.Link(name)
	if err != nil {
		return nil, err
	}
	protocols = indescribable(limits)
	if err := forward(claim, d, Device{link.Index, name}, protocols); err != nil {
		return nil, fmt.Errorf("forward between %s and %s: %w", name, d.Name, err)
	}
	// Frames that the host itself sends on the tap would arrive on the port, so it must be
	// quiet before it is up.
	if err := c.SetQuiet(link.Index, rtnl.Alias("vmnet switch: beside "+d.Name),
		rtnl.TxQLen(laneQueueLen)); err != nil {
		return nil, err
	}
	if err := c.Set(link.Index, rtnl.Up(true)); err != nil {
		return nil, err
	}
	return protocols, leaveOut(socket, protocols)
}

// laneQueueLen is the length of the tap's queue in frames.
const laneQueueLen = 4096

// indescribable lists the IP protocols whose super-frames a packet socket cannot receive, or that
// may encapsulate such frames: SCTP, and UDP before Linux 6.2. Taps of kernels before 6.2 refuse
// TUN_F_USO4.
func indescribable(l offload.Limits) []byte {
	if l.USO {
		return []byte{unix.IPPROTO_SCTP}
	}
	return []byte{
		unix.IPPROTO_SCTP, unix.IPPROTO_UDP, unix.IPPROTO_GRE, unix.IPPROTO_IPIP,
		unix.IPPROTO_IPV6, unix.IPPROTO_MPLS,
	}
}

const etherLen = 14 // ETH_HLEN of include/uapi/linux/if_ether.h

// ipVersions says where IP headers have their protocol.
var ipVersions = []struct {
	kind uint16
	at   uint32 // offset in the header
}{{unix.ETH_P_IP, 9}, {unix.ETH_P_IPV6, 6}}

// leaveOut attaches a filter by which a packet socket ignores packets of those protocols, since the
// lane receives them. The kernel has removed the outermost tag from the frame before it runs the
// filter.
func leaveOut(socket int, protocols []byte) error {
	const protocol = 1<<32 - 0x1000 // SKF_AD_OFF + SKF_AD_PROTOCOL of include/uapi/linux/filter.h
	var program []unix.SockFilter
	for _, v := range ipVersions {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: protocol},
			unix.SockFilter{
				Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(1 + 2*len(protocols)),
				K: uint32(v.kind),
			},
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherLen + v.at})
		for _, p := range protocols {
			program = append(program,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(p)},
				unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
		}
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1})
	return unix.SetsockoptSockFprog(socket, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// forward has the kernel forward frames from the tap to the claimed device, and packets of those
// protocols from the device to the tap. The kernel drops them if the other device is gone.
func forward(claim int, device, tap Device, protocols []byte) error {
	table := ClaimTable + device.Name
	messages := []*nl.NetlinkRequest{
		nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN, nfCreate|unix.NLM_F_EXCL, unix.NFPROTO_NETDEV, 0,
			ingressChain(table, "lane", tap.Name)...),
		nfRule(table, "lane", nfForward(device.Index)),
	}
	for _, v := range ipVersions {
		for _, p := range protocols {
			messages = append(messages, nfRule(table, claimChain, nfIsIP(v.kind, v.at, p), nfForward(tap.Index)))
		}
	}
	_, err := transact(claim, messages...)
	return err
}
