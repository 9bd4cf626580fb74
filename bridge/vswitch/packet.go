package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/netns"
	"vmnet/internal/offload"
)

// A packet socket's frames may be super-frames, so that each takes the room of one. packetBuffer is what
// the kernel may queue for it, counted with its own overhead of each frame.
const (
	packetFrames = 32
	packetBuffer = 8 << 20
)

// OpenPacket makes a wire of a device that somebody else holds, from its kernel side: a NIC or VLAN as the uplink, the
// tap of a QEMU, one end of a veth pair. It takes frames from it by a packet socket (packet(7)), with their vnet
// headers, and sends out by it. The device becomes promiscuous as long as the wire is open.
//
// The device is claimed: what comes in by it reaches the switch only, and nothing else of its kernel. Where the
// kernel cannot do that, or somebody else has claimed it, it is an error. What the host itself sends by the device
// goes out past the switch, so it should have no address there.
//
// It needs CAP_NET_RAW and CAP_NET_ADMIN in ns, for opening only. A device that is removed ends the port; one that is
// down does not.
func OpenPacket(ns *netns.NS, device string) (*Wire, error) {
	socket, claim, err := PacketFiles(ns, device)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	defer claim.Close()
	return OpenPacketFiles(socket, claim)
}

// PacketFiles opens what OpenPacket needs the right for, so that another process can make the wire: a packet socket
// that hears the device from now on, and the netlink socket that its claim lasts as long as. The caller closes both.
func PacketFiles(ns *netns.NS, device string) (socket, claim *os.File, err error) {
	if socket, err = packetSocket(ns, device); err == nil {
		if claim, err = claimDevice(ns, device); err == nil {
			// Now that the stack gets nothing any more, the switch may have it.
			if err = bindPacket(int(socket.Fd()), device); err == nil {
				return socket, claim, nil
			}
			err = errors.Join(err, claim.Close())
		}
		err = errors.Join(err, socket.Close())
	}
	return nil, nil, fmt.Errorf("open packet socket on %s: %w", device, err)
}

// packetSocket is one that hears nothing yet.
func packetSocket(ns *netns.NS, device string) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // 0: no protocol until it is bound
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w (needs CAP_NET_RAW)", err)
	}
	_, err = indexOf(fd, device)
	if err == nil {
		err = setPacket(fd)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet socket on "+device), nil
}

// OpenPacketFiles makes a wire of what PacketFiles has opened, by this process or another one, and needs no right. It copies
// both; the caller keeps, and may close, its own. The packet socket is made non-blocking.
func OpenPacketFiles(socket, claim *os.File) (*Wire, error) {
	w := &Wire{kind: "packet", limits: offload.Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: vnetLen}}
	held, err := duplicate(claim, checkClaim)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: the claim: %w", err)
	}
	w.claim = held.close
	own, err := duplicate(socket, func(fd int) (err error) {
		w.mtu, err = checkPacket(fd)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket: %w", err), w.Close())
	}
	q := &packetQueue{socketQueue: newSocketQueue(own, packetFrames, vnetLen+maxFrame, tagLen, true)}
	q.ended = q.deviceGone
	w.queues = []queue{q}
	return w, nil
}

// checkPacket tells whether a socket is as PacketFiles makes it, and the MTU of its device.
func checkPacket(fd int) (mtu int, err error) {
	if err := checkKind(fd, unix.AF_PACKET, unix.SOCK_RAW, "a raw packet socket"); err != nil {
		return 0, err
	}
	for _, o := range packetOptions {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, o.opt); err != nil || on == 0 {
			return 0, fmt.Errorf("%s is not set (%w)", o.name, errors.Join(unix.EINVAL, err))
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	ll, ok := name.(*unix.SockaddrLinklayer)
	if !ok || ll.Ifindex <= 0 || ll.Protocol != allProtocols {
		return 0, errors.New("it is not bound to a device and all protocols")
	}
	return mtuOf(fd, ll.Ifindex)
}

// mtuOf asks for the MTU of a device in the socket's netns (netdevice(7)).
func mtuOf(fd, index int) (int, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	ifr.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil {
		return 0, fmt.Errorf("SIOCGIFNAME: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, ifr); err != nil {
		return 0, fmt.Errorf("SIOCGIFMTU: %w", err)
	}
	return int(ifr.Uint32()), nil
}

func indexOf(fd int, device string) (int, error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

var packetOptions = []struct {
	name string
	opt  int
}{
	{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR},
	{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING}, // Linux 4.20
	{"PACKET_AUXDATA", unix.PACKET_AUXDATA},
}

func setPacket(fd int) error {
	for _, o := range packetOptions {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.opt, 1); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	return raiseBuffers(fd, packetBuffer)
}

// allProtocols is ETH_P_ALL in network byte order.
const allProtocols = (unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) & 0xffff

func bindPacket(fd int, device string) error {
	index, err := indexOf(fd, device)
	if err != nil {
		return err
	}
	promisc := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promisc); err != nil {
		return fmt.Errorf("make it promiscuous: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

type packetQueue struct {
	*socketQueue
	down bool // the device was, and no frame has come since
}

// How long after a device went down it is looked for: at first, since one that is removed goes down just before, and
// then each time.
const (
	removedSoon = 20 * time.Millisecond
	removedLate = time.Second
)

// receive also ends when a device that is down is removed: of that the kernel tells a socket nothing more
// (packet_notifier in net/packet/af_packet.c).
func (q *packetQueue) receive(frames []frame) (int, error) {
	for {
		n, err := q.socketQueue.receive(frames)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !q.gone():
			_ = q.os.SetReadDeadline(time.Now().Add(removedLate))
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("receive: %w", unix.ENETDOWN)
		case q.down && err == nil && frames[0].lost == Delivered:
			q.down = false
			_ = q.os.SetReadDeadline(time.Time{})
		}
		return n, err
	}
}

// deviceGone tells a device that was removed from one that went down, and from a frame that could not be told
// in a vnet header: only the first takes the socket's device away (packet_notifier in net/packet/af_packet.c).
func (q *packetQueue) deviceGone(errno syscall.Errno) bool {
	gone := q.gone()
	if !gone && errno == unix.ENETDOWN {
		q.down = true
		_ = q.os.SetReadDeadline(time.Now().Add(removedSoon))
	}
	return gone
}

func (q *packetQueue) gone() bool {
	gone := false
	err := q.control(func(fd int) error {
		name, err := unix.Getsockname(fd)
		ll, ok := name.(*unix.SockaddrLinklayer)
		gone = err == nil && ok && ll.Ifindex < 0
		return err
	})
	return gone || err != nil
}

// overruns is how many frames the kernel has dropped since the last call because it had no room for them
// (PACKET_STATISTICS in packet(7)).
func (q *packetQueue) overruns() (n uint64) {
	_ = q.control(func(fd int) error {
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			n = uint64(st.Drops)
		}
		return err
	})
	return n
}
