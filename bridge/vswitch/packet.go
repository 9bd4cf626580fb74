package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// A packet socket's frames may be super-frames, so that each takes the room of one. That of BIG TCP is
// made once one has come, which few devices send: until then it takes 2 MiB, with it 8 MiB. packetBuffer
// is what the kernel may queue for it, counted with its own overhead of each frame.
const (
	packetFrames = 32
	bigFrames    = 16
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
// It needs CAP_NET_RAW and CAP_NET_ADMIN in ns, for opening only. A device that is removed, moved to another netns or
// renamed ends the port; one that is down does not.
func OpenPacket(ns *netns.NS, device string) (*Wire, error) {
	files, err := PacketFiles(ns, device)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	return OpenPacketFiles(files)
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// PacketFileCount is how many files a wire of a packet socket is made of.
const PacketFileCount = 4

// PacketFiles opens what OpenPacket needs the privilege for, so that another process can make the wire:
// a packet socket that hears the device from now on, the netlink socket that its claim lasts as long as,
// the one by which the wire follows the device, and a file for what the packet socket cannot send: a
// lane's, or another packet socket. The caller closes them.
func PacketFiles(ns *netns.NS, device string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			files, err = nil, errors.Join(fmt.Errorf("open packet socket on %s: %w", device, err), closeAll(files))
		}
	}()
	socket, d, err := packetSocket(ns, device)
	if err != nil {
		return nil, err
	}
	files = append(files, socket)
	claim, err := claimDevice(ns, d.name)
	if err != nil {
		return files, err
	}
	files = append(files, claim)
	link, err := LinkFile(ns)
	if err != nil {
		return files, err
	}
	files = append(files, link)
	second, err := secondWay(ns, socket, claim, d)
	if err != nil {
		return files, err
	}
	files = append(files, second)
	// Now that the stack gets nothing any more, the switch may have it.
	return files, bindPacket(int(socket.Fd()), d)
}

// secondWay opens a lane to a veth device, and a socket for others, which do not need the lane.
func secondWay(ns *netns.NS, socket, claim *os.File, d packetDevice) (*os.File, error) {
	c, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	link, err := c.LinkByIndex(d.index)
	c.Close()
	if err != nil {
		return nil, err
	}
	if link.Kind == "veth" {
		if f, err := openLane(ns, socket, claim, d); f != nil || err != nil {
			return f, err
		}
	}
	return oversizeSocket(ns, d)
}

// A packetDevice is the device of a packet socket, by its name proper: a claim is not of an altname.
type packetDevice struct {
	index int
	name  string
}

// packetSocket is one that hears nothing yet, and the device that has that name or altname.
func packetSocket(ns *netns.NS, device string) (*os.File, packetDevice, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // 0: no protocol until it is bound
		return err
	})
	var d packetDevice
	if err != nil {
		return nil, d, fmt.Errorf("%w (needs CAP_NET_RAW)", err)
	}
	index, err := indexOf(fd, device)
	if err == nil {
		d, err = deviceOf(fd, index)
	}
	if err == nil {
		err = setPacket(fd)
	}
	if err != nil {
		return nil, d, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet socket on "+d.name), d, nil
}

// OpenPacketFiles makes a wire of what PacketFiles has opened, by this process or another one, and needs
// no privilege. It copies the files; the caller keeps, and may close, its own. The sockets are made
// non-blocking.
func OpenPacketFiles(files []*os.File) (*Wire, error) {
	if len(files) != PacketFileCount {
		return nil, fmt.Errorf("open packet socket: %d files: want %d", len(files), PacketFileCount)
	}
	socket, claim, link, second := files[0], files[1], files[2], files[3]
	w := &Wire{kind: "packet", limits: offload.Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: vnetLen}}
	held, err := duplicate(claim, checkClaim)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: the claim: %w", err)
	}
	w.claim = held.close
	var d packetDevice
	own, err := duplicatePolled(socket, func(fd int) (err error) {
		d, err = checkPacket(fd)
		return err
	})
	w.device = d.name
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket: %w", err), w.Close())
	}
	q := &packetQueue{socketQueue: newSocketQueue(own, packetFrames, vnetLen+maxFrame, tagLen, true), device: d}
	q.big = vnetLen + maxBig
	q.ended = q.deviceGone
	q.lookAfter(lookEvery)
	w.queues = []queue{q}
	err = w.Follow(link)
	if err == nil {
		err = q.takeSecond(second, w)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket: %w", err), w.Close())
	}
	return w, nil
}

// checkPacket tells whether a socket is as PacketFiles makes it, and its device.
func checkPacket(fd int) (d packetDevice, err error) {
	if err := checkKind(fd, unix.AF_PACKET, unix.SOCK_RAW, "a raw packet socket"); err != nil {
		return d, err
	}
	for _, o := range packetOptions {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, o.opt); err != nil || on == 0 {
			return d, fmt.Errorf("%s is not set (%w)", o.name, errors.Join(unix.EINVAL, err))
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return d, err
	}
	ll, ok := name.(*unix.SockaddrLinklayer)
	switch {
	case ok && ll.Ifindex < 0:
		return d, fmt.Errorf("the device was removed meanwhile: %w", unix.ENODEV)
	case !ok || ll.Ifindex == 0 || ll.Protocol != allProtocols:
		return d, errors.New("it is not bound to a device and all protocols")
	}
	return deviceOf(fd, ll.Ifindex)
}

// deviceOf makes sure that a device's frames are those of Ethernet: neither the loopback device's are, which its host needs itself, nor
// those of a tunnel (ARPHRD_ETHER in include/uapi/linux/if_arp.h).
func deviceOf(fd, index int) (packetDevice, error) {
	d := packetDevice{index: index}
	var err error
	if d.name, err = nameOf(fd, index); err != nil {
		return d, err
	}
	ifr, err := unix.NewIfreq(d.name)
	if err != nil {
		return d, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, ifr); err != nil {
		return d, fmt.Errorf("SIOCGIFHWADDR: %w", err)
	}
	if kind := ifr.Uint16(); kind != unix.ARPHRD_ETHER { // sa_family of ifr_hwaddr, netdevice(7)
		return d, fmt.Errorf("%w device: %s is not of Ethernet, but of type %d", bridge.ErrInvalid, d.name, kind)
	}
	return d, nil
}

// nameOf asks what a device in the socket's netns is called (netdevice(7)).
func nameOf(fd, index int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	ifr.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil {
		return "", fmt.Errorf("SIOCGIFNAME: %w", err)
	}
	return ifr.Name(), nil
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

func bindPacket(fd int, d packetDevice) error {
	promisc := unix.PacketMreq{Ifindex: int32(d.index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promisc); err != nil {
		return fmt.Errorf("make it promiscuous: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: d.index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return d.check(fd)
}

// check tells by an error that the device is not what was claimed any more. Since Linux 6.16 a claim is of the name, not of the device that
// had it: after a rename the host's stack gets what comes in, and the next device of that name is claimed
// (nf_tables_netdev_event in net/netfilter/nf_tables_api.c).
func (d packetDevice) check(fd int) error {
	name, err := nameOf(fd, d.index)
	switch {
	case err != nil:
		return err
	case name != d.name:
		return fmt.Errorf("the device %s was renamed to %s, and is not kept from the host any more: remove the port, and add it by that name", d.name, name)
	}
	return nil
}

type packetQueue struct {
	*socketQueue
	device packetDevice
	second secondary
}

// A secondary sends what the packet socket cannot, and tells a frame's fate by an errno.
type secondary interface {
	send(f *offload.Frame) syscall.Errno
	close() error
}

// takeSecond makes the second way out of the file that secondWay has opened.
func (q *packetQueue) takeSecond(f *os.File, w *Wire) error {
	lane, err := takeLane(f)
	if err == nil {
		q.second = lane
		also, err := lane.queue(q)
		if err != nil {
			return err
		}
		w.queues = append(w.queues, also)
		w.limits.Tunnels, w.limits.VnetHdr = lane.limits.Tunnels, max(vnetLen, lane.limits.VnetHdr)
		return nil
	}
	second, socketErr := openOversize(f, q.device.index)
	if socketErr != nil {
		return errors.Join(err, socketErr)
	}
	q.second = second
	return nil
}

// send sends the list; what the socket cannot goes by the second way.
func (q *packetQueue) send(s *sender) {
	s.second = q.second
	q.socketQueue.send(s)
	s.second = nil
}

func (q *packetQueue) close() error {
	err := q.socketQueue.close()
	if q.second != nil {
		err = errors.Join(err, q.second.close())
	}
	return err
}

// How often the device is looked for; and how soon after it went down, since one that is removed goes down just before.
const (
	lookEvery   = 500 * time.Millisecond
	removedSoon = 20 * time.Millisecond
)

// receive also ends when the device was renamed, or is removed while it is down: of those the kernel tells a socket
// nothing (packet_notifier in net/packet/af_packet.c).
func (q *packetQueue) receive(frames []frame) (int, error) {
	for {
		n, err := q.socketQueue.receive(frames)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := q.look(); err != nil {
			return 0, errors.Join(fmt.Errorf("receive: %w", err), q.close()) // nothing leaves by it either
		}
		q.lookAfter(lookEvery)
	}
}

// lookAfter has receive look for the device then.
func (q *packetQueue) lookAfter(d time.Duration) { q.deadline(d) }

func (q *packetQueue) look() error {
	if q.gone() {
		return unix.ENETDOWN
	}
	return q.control(q.device.check)
}

// deviceGone tells a device that was removed from one that went down, and from a frame that could not be told
// in a vnet header: only the first takes the socket's device away.
func (q *packetQueue) deviceGone(errno syscall.Errno) bool {
	gone := q.gone()
	if !gone && errno == unix.ENETDOWN {
		q.lookAfter(removedSoon)
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
