package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fastpath"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
)

// A packet socket may receive super-frames, so each buffer has room for one. Together they take 2
// MiB, and 8 MiB once a frame of BIG TCP has arrived, which few devices send.
const (
	packetFrames = 32
	bigFrames    = 16
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
// nameOrPath is that of the network namespace that the device is in: a name of ip-netns(8), a path
// such as /proc/4711/ns/net, or "" for that of the calling thread. Opening needs CAP_NET_RAW and
// CAP_NET_ADMIN there. The open wire needs neither. The port ends when the device is removed,
// renamed or moved to another netns. It does not end when the device goes down.
func OpenPacket(nameOrPath, device string) (*Wire, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	files, slow, err := endpoint.FastPacketFiles(ns, device, true)
	if err != nil {
		return nil, err
	}
	defer fdpass.CloseAll(files)
	w, err := OpenPacketFiles(files)
	if err == nil && slow != nil {
		w.NoFastPath(slow.Error())
	}
	return w, err
}

// PacketFiles opens the files for which OpenPacket needs privilege, so that another process can
// make the wire. They are a packet socket that receives from the device at once, the netlink socket
// that keeps the claim, the netlink socket by which the wire follows the device, and a file for
// frames that the packet socket cannot send: a lane's tap or another packet socket. The caller
// closes them.
func PacketFiles(nameOrPath, device string) ([]*os.File, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return endpoint.PacketFiles(ns, device)
}

// OpenPacketFiles makes a wire from the files of PacketFiles, which this process or another one has
// opened. It needs no privilege. It copies the files; the caller keeps its own and may close them.
// It makes the sockets non-blocking, the caller's included.
func OpenPacketFiles(files []*os.File) (*Wire, error) {
	const few, many = endpoint.PacketFileCount, endpoint.PacketFileCount + endpoint.FastFileCount
	if len(files) != few && len(files) != many {
		return nil, fmt.Errorf("open packet socket: %d files: want %d or %d", len(files), few, many)
	}
	socket, claim, link, second := files[0], files[1], files[2], files[3]
	w := &Wire{
		kind:   "packet",
		pieces: true,
		limits: offload.Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: vnetLen},
	}
	held, err := duplicate(claim, endpoint.CheckClaim)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: the claim: %w", err)
	}
	w.claim = held.close
	var d endpoint.Device
	own, err := duplicatePolled(socket, func(fd int) (err error) {
		d, err = endpoint.CheckPacket(fd)
		return err
	})
	w.device = d.Name
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket: %w", err), w.Close())
	}
	q := &packetQueue{device: d, mmsgQueue: newMmsgQueue(own, mmsgConfig{
		batch: packetFrames, size: vnetLen + maxFrame, big: vnetLen + maxBig, lacks: lacksTag,
	})}
	q.ended = q.deviceGone
	q.useRing()
	q.lookAfter(lookEvery)
	w.queues = []queue{q}
	err = w.Follow(link)
	if err == nil {
		err = q.takeSecond(second, w)
	}
	if err == nil {
		err = q.takeFast(files[few:], w)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket: %w", err), w.Close())
	}
	return w, nil
}

type packetQueue struct {
	*mmsgQueue
	device endpoint.Device
	second secondary
	ring   *arrivals // may be nil
	small  []byte    // frames from the ring
}

// A secondary is the second path of a packet wire: it sends frames that the packet socket cannot
// send. It is a lane on a veth device that can have one, otherwise an oversize. send returns the
// result as an errno.
type secondary interface {
	send(f *offload.Frame) syscall.Errno
	close() error
}

// takeSecond makes the secondary from the file that endpoint.PacketFiles has opened.
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
	second, socketErr := openOversize(f, q.device.Index)
	if socketErr != nil {
		return errors.Join(err, socketErr)
	}
	q.second = second
	return nil
}

// takeFast makes the fast path from the files that fastpath.Open has opened, or of none.
func (q *packetQueue) takeFast(files []*os.File, w *Wire) error {
	w.noFast = "its files were opened without"
	if len(files) == 0 {
		return nil
	}
	fast := &fastPort{}
	err := q.control(func(fd int) (err error) {
		fast.netns, err = fastpath.NetnsCookie(fd)
		return err
	})
	if err == nil {
		fast.table, err = fastpath.OpenTable(files)
	}
	if err == nil {
		w.fast = fast
	}
	return err
}

// NoFastPath says why a packet wire has no fast path, for those who ask for its port's Stats.
func (w *Wire) NoFastPath(why string) { w.noFast = why }

// send sends the list. Frames that the socket cannot send go through the secondary.
func (q *packetQueue) send(s *sender) {
	s.second = q.second
	q.mmsgQueue.send(s)
	s.second = nil
}

func (q *packetQueue) close() error {
	err := q.mmsgQueue.close()
	if q.ring != nil {
		err = errors.Join(err, q.ring.close())
	}
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
		n, err := q.mmsgQueue.receive(frames)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := q.look(); err != nil {
			// Nothing leaves by it either.
			return 0, errors.Join(fmt.Errorf("receive: %w", err), q.close())
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
	return q.control(q.device.Check)
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

// kernelDrops returns the number of frames that the kernel has dropped since the last call
// (PACKET_STATISTICS in packet(7)), and why: the ring or the socket's queue was full, or no vnet
// header describes them.
func (q *packetQueue) kernelDrops() (why Reason, n uint64) {
	full := q.ring == nil || q.ring.wasFull(true)
	_ = q.control(func(fd int) error {
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			n = uint64(st.Drops)
		}
		return err
	})
	// The ring may have been full since it was asked: that counts for this call and the next one.
	if full || q.ring.wasFull(false) {
		return Overrun, n
	}
	return Indescribable, n
}
