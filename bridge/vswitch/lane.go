package vswitch

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/endpoint"
)

// A lane is the second path (see secondary) between a veth device and the switch, for frames that a
// packet socket cannot pass but a bridge can:
//   - outgoing super-frames of tunnels, for which the socket's vnet header has no type;
//   - outgoing full frames with several tags. veth drops a frame that is longer than its peer's MTU
//     plus one tag, unless the outermost tag is in the skb's metadata, where a packet socket cannot
//     put it (____dev_forward_skb in include/linux/netdevice.h);
//   - incoming super-frames for which the socket's vnet header has no type.
//
// A lane is a tap and nftables rules that forward frames between the two devices (nft_fwd_netdev).
// The kernel parses frames from the tap as it does those of a NIC, and segments frames for it as
// the tap asks. The rules are in the claim's table and are removed with it. The tap is removed with
// its last fd.
type lane struct {
	file
	limits offload.Limits
}

// takeLane makes a lane from a copy of the tap's queue among the files of endpoint.PacketFiles.
func takeLane(f *os.File) (*lane, error) {
	l := &lane{}
	own, err := duplicateAs(f, func(fd int) (err error) {
		_, l.limits, err = endpoint.SetTap(fd)
		return err
	}, unpolled)
	l.file = own
	return l, err
}

// send sends a frame with its vnet header to the device. The kernel does not report whether it
// drops it there.
func (l *lane) send(f *offload.Frame) syscall.Errno {
	v := vectorOf(f)
	errno := syscall.Errno(unix.EBADF)
	_ = l.conn.Control(func(fd uintptr) {
		for errno = unix.EINTR; errno == unix.EINTR; {
			errno = writev(fd, v[:])
		}
	})
	runtime.KeepAlive(f)
	return errno
}

// A laneQueue receives from a lane, and sends as the packet socket's queue does.
type laneQueue struct {
	*tapQueue
	packet *packetQueue
}

func (q *laneQueue) send(s *sender) { q.packet.send(s) }

// queue makes a laneQueue from a copy of the lane's fd.
func (l *lane) queue(packet *packetQueue) (*laneQueue, error) {
	q, _, err := openTapQueue(l.os)
	if err != nil {
		return nil, err
	}
	return &laneQueue{q, packet}, nil
}
