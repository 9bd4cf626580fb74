package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// A packet socket may receive super-frames, so that each slot has room for one. The slots take 2
// MiB. They grow to 8 MiB once a frame of BIG TCP has arrived, which few devices send. packetBuffer
// limits what the kernel queues for the socket, in bytes that include the kernel's overhead for
// each frame.
const (
	packetFrames = 32
	bigFrames    = 16
	packetBuffer = 8 << 20
)

// OpenPacket makes a wire from the kernel's side of an existing device: a NIC or VLAN as the
// uplink, a QEMU's tap, or one end of a veth pair. A packet socket (packet(7)) receives and sends
// the frames, with their vnet headers. The device is promiscuous while the wire is open.
//
// OpenPacket claims the device: its incoming frames reach only the switch, and not the kernel's
// stack. It fails if the kernel does not support that, or another switch has claimed the device.
// Frames that the host itself sends on the device bypass the switch, so the host should have no
// address on it.
//
// Opening needs CAP_NET_RAW and CAP_NET_ADMIN in ns; the open wire needs neither. The port ends
// when the device is removed, renamed or moved to another netns. It does not end when the device
// goes down.
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

// PacketFileCount is the number of files that a packet port's wire needs.
const PacketFileCount = 4

// PacketFiles opens the files for which OpenPacket needs privilege, so that another process can
// make the wire. They are a packet socket that receives from the device at once, the netlink socket
// that keeps the claim, the netlink socket by which the wire follows the device, and a file for
// frames that the packet socket cannot send: a lane's tap or another packet socket. The caller
// closes them.
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
	second, err := secondFile(ns, socket, claim, d)
	if err != nil {
		return files, err
	}
	files = append(files, second)
	// Receive only now that the stack no longer receives.
	return files, bindPacket(int(socket.Fd()), d)
}

// secondFile opens the file for frames that the packet socket cannot send: a lane to a veth device,
// or a socket to any other device, which needs no lane.
func secondFile(ns *netns.NS, socket, claim *os.File, d packetDevice) (*os.File, error) {
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

// A packetDevice is the device of a packet socket. It has the device's own name, since a claim
// cannot use an altname.
type packetDevice struct {
	index int
	name  string
}

// packetSocket opens a packet socket that does not receive yet, and finds the device with that name
// or altname.
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

// OpenPacketFiles makes a wire from the files of PacketFiles, which this process or another one has
// opened. It needs no privilege. It copies the files; the caller keeps its own and may close them.
// It makes the sockets non-blocking, the caller's included.
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

// checkPacket checks that a socket is like those that PacketFiles makes, and returns its device.
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
		return d, fmt.Errorf("the device has been removed: %w", unix.ENODEV)
	case !ok || ll.Ifindex == 0 || ll.Protocol != allProtocols:
		return d, errors.New("it is not bound to a device and all protocols")
	}
	return deviceOf(fd, ll.Ifindex)
}

// deviceOf returns the device with that index. It fails unless it is an Ethernet device
// (ARPHRD_ETHER in include/uapi/linux/if_arp.h), which excludes tunnels and the loopback device.
// The host needs the latter itself.
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
		return d, fmt.Errorf("%w device: %s is not an Ethernet device, but one of type %d", brport.ErrInvalid, d.name, kind)
	}
	return d, nil
}

// nameOf returns the name of the device with that index in the socket's netns (netdevice(7)).
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
		return fmt.Errorf("make the device promiscuous: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: d.index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return d.check(fd)
}

// check returns an error if the device has been renamed or is gone. Since Linux 6.16 a claim
// follows the name, not the device. After a rename, the host's stack receives the frames, and the
// next device of that name is claimed (nf_tables_netdev_event in net/netfilter/nf_tables_api.c).
func (d packetDevice) check(fd int) error {
	name, err := nameOf(fd, d.index)
	switch {
	case err != nil:
		return err
	case name != d.name:
		return fmt.Errorf("the device %s was renamed to %s, so the host receives its frames (remove the port, and add it with the new name)", d.name, name)
	}
	return nil
}

type packetQueue struct {
	*socketQueue
	device packetDevice
	second secondary
}

// A secondary sends frames that the packet socket cannot send. send returns the result as an errno.
type secondary interface {
	send(f *offload.Frame) syscall.Errno
	close() error
}

// takeSecond makes the secondary from the file that secondFile has opened.
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

// send sends the list. Frames that the socket cannot send go through the secondary.
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

// How often receive checks the device, and how soon after it went down: a device goes down just
// before it is removed.
const (
	lookEvery   = 500 * time.Millisecond
	removedSoon = 20 * time.Millisecond
)

// receive also ends when the device is renamed, or removed while it is down. The kernel does not
// report these to the socket (packet_notifier in net/packet/af_packet.c).
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

// lookAfter makes receive check the device after that time.
func (q *packetQueue) lookAfter(d time.Duration) { q.deadline(d) }

func (q *packetQueue) look() error {
	if q.gone() {
		return unix.ENETDOWN
	}
	return q.control(q.device.check)
}

// deviceGone reports whether an error means that the device was removed, rather than that it went
// down or that a vnet header cannot describe a frame. Only a removal unbinds the socket from its
// device.
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

// overruns returns the number of frames that the kernel has dropped since the last call because the
// socket's buffer was full (PACKET_STATISTICS in packet(7)).
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
