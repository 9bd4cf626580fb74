package vswitch

import (
	"errors"
	"fmt"
	"syscall"

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
	w, err := openPacket(ns, device)
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", device, err)
	}
	return w, nil
}

func openPacket(ns *netns.NS, device string) (*Wire, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		// Protocol 0: it hears nothing until it is bound.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w (needs CAP_NET_RAW)", err)
	}
	f, err := newFile(fd, "packet socket on "+device)
	if err != nil {
		return nil, err
	}
	w := &Wire{kind: "packet", limits: offload.Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: vnetLen}}
	var index int
	err = f.control(func(fd int) error {
		index, w.mtu, err = askDevice(fd, device)
		return errors.Join(err, setPacket(fd))
	})
	if err == nil {
		w.claim, err = claim(ns, device)
	}
	if err == nil {
		// Now that the stack gets nothing any more, the switch may have it.
		err = f.control(func(fd int) error { return bindPacket(fd, index) })
	}
	q := &packetQueue{newSocketQueue(f, packetFrames, vnetLen+maxFrame, tagLen, true)}
	q.ended = q.deviceGone
	w.queues = []queue{q}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// askDevice asks for a device's index and MTU in the socket's netns (netdevice(7)).
func askDevice(fd int, device string) (index, mtu int, err error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return 0, 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, 0, err
	}
	index = int(ifr.Uint32())
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, ifr); err != nil {
		return 0, 0, err
	}
	return index, int(ifr.Uint32()), nil
}

func setPacket(fd int) error {
	for _, opt := range []struct {
		name string
		opt  int
	}{
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING}, // Linux 4.20
		{"PACKET_AUXDATA", unix.PACKET_AUXDATA},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, opt.opt, 1); err != nil {
			return fmt.Errorf("%s: %w", opt.name, err)
		}
	}
	return raiseBuffers(fd, packetBuffer)
}

func bindPacket(fd, index int) error {
	promisc := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promisc); err != nil {
		return fmt.Errorf("make it promiscuous: %w", err)
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network byte order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

type packetQueue struct{ *socketQueue }

// deviceGone tells a device that was removed from one that went down, and from a frame that could not be told
// in a vnet header: only the first takes the socket's device away (packet_notifier in net/packet/af_packet.c).
func (q *packetQueue) deviceGone(syscall.Errno) bool {
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
