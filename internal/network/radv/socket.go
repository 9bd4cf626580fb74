package radv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// Multicast addresses of all hosts and of all routers on a link (RFC 4291, 2.7.1).
var (
	allHosts   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// filter accepts router solicitations with the hop limit of neighbour discovery, whole. It runs on
// packets from their IPv6 header on (Documentation/networking/filter.rst).
var filter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protocolICMP, Jf: 5},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 7},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: hopLimit, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: headerLen},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeSolicitation, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: maxPacket},
	{Code: unix.BPF_RET | unix.BPF_K},
}

// maxPacket bounds the solicitations that are read, in bytes: they have one short option.
const maxPacket = 1280

// Open opens what a sender on the link with that index in ns needs: a packet socket, so that no
// firewall of the host drops solicitations, and a socket that is a member of the routers' group. A
// process that has inherited both runs Send.
func Open(ns *netns.NS, index int) (files []*os.File, err error) {
	err = ns.Do(func() error {
		for _, open := range []func(int) (int, error){openPackets, openGroup} {
			fd, err := open(index)
			if err != nil {
				return err
			}
			files = append(files, os.NewFile(uintptr(fd), "router advertisements"))
		}
		return nil
	})
	if err != nil {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("open sockets for router advertisements: %w", err)
	}
	return files, nil
}

// openPackets opens a socket of packets (packet(7)). Its filter cannot be changed any more.
func openPackets(index int) (fd int, err error) {
	const flags = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err = unix.Socket(unix.AF_PACKET, flags, 0) // 0: it receives nothing before it is bound
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv6Frames, Ifindex: index})
	}
	if err != nil {
		return 0, errors.Join(os.NewSyscallError("packet socket", err), unix.Close(fd))
	}
	return fd, nil
}

// ipv6Frames is ETH_P_IPV6 (include/uapi/linux/if_ether.h) in network byte order.
var ipv6Frames = binary.NativeEndian.Uint16([]byte{unix.ETH_P_IPV6 >> 8, unix.ETH_P_IPV6 & 0xff})

// openGroup opens a socket whose membership lets solicitations in, and lets snooping bridges know.
func openGroup(index int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	group := unix.IPv6Mreq{Multiaddr: allRouters.As16(), Interface: uint32(index)}
	if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &group); err != nil {
		return 0, errors.Join(os.NewSyscallError("join ff02::2", err), unix.Close(fd))
	}
	return fd, nil
}

// socket is a link by which advertisements are sent.
type socket struct {
	packets *os.File
	group   int // the other socket
	index   int // of the link
}

// newSocket takes over the descriptors of what Open has opened.
func newSocket(packets, group int) (*socket, error) {
	a, err := unix.Getsockname(packets)
	if err == nil {
		err = unix.SetNonblock(packets, true) // for os.File, which polls then
	}
	link, ok := a.(*unix.SockaddrLinklayer)
	if err != nil || !ok {
		return nil, fmt.Errorf("descriptor %d is no packet socket: %w", packets, err)
	}
	return &socket{os.NewFile(uintptr(packets), "packets"), group, link.Ifindex}, nil
}

// link returns what the link is like now: its addresses, of which the IP is link-local, and its MTU
// in bytes. An error says that it has no usable address, or has gone.
func (s *socket) link() (mac net.HardwareAddr, from netip.Addr, mtu int, err error) {
	conn, err := s.packets.SyscallConn()
	if err != nil {
		return nil, from, 0, err
	}
	// packet(7): the kernel fills in the address that the device has now.
	err2 := conn.Control(func(fd uintptr) {
		var a unix.Sockaddr
		if a, err = unix.Getsockname(int(fd)); err != nil {
			return
		}
		if l, ok := a.(*unix.SockaddrLinklayer); ok && l.Halen == 6 {
			mac = net.HardwareAddr(l.Addr[:6])
		}
	})
	if err = errors.Join(err, err2); err != nil {
		return nil, from, 0, err
	}
	// The source address by which the kernel would send to all hosts is the one that guests know
	// the router by. A connected UDP socket sends nothing.
	const discard = 9
	to := &unix.SockaddrInet6{Port: discard, ZoneId: uint32(s.index), Addr: allHosts.As16()}
	if err := disconnect(s.group); err != nil {
		return nil, from, 0, err
	}
	if err := unix.Connect(s.group, to); err != nil {
		return nil, from, 0, os.NewSyscallError("connect", err)
	}
	name, err := unix.Getsockname(s.group)
	if err != nil {
		return nil, from, 0, os.NewSyscallError("getsockname", err)
	}
	if a, ok := name.(*unix.SockaddrInet6); ok {
		from = netip.AddrFrom16(a.Addr)
	}
	if !from.IsLinkLocalUnicast() || mac == nil {
		return nil, from, 0, errNoAddress
	}
	mtu, err = unix.GetsockoptInt(s.group, unix.IPPROTO_IPV6, unix.IPV6_MTU)
	return mac, from, mtu, os.NewSyscallError("IPV6_MTU", err)
}

var errNoAddress = errors.New("the link has no link-local address")

// disconnect has a UDP socket forget its addresses: connect(2) keeps a source that it has chosen.
func disconnect(fd int) error {
	unspecified := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspecified)),
		unsafe.Sizeof(unspecified))
	if errno != 0 {
		return os.NewSyscallError("disconnect", errno)
	}
	return nil
}

// send sends an IPv6 packet to a link-layer address.
func (s *socket) send(packet []byte, to net.HardwareAddr) error {
	a := unix.SockaddrLinklayer{Protocol: ipv6Frames, Ifindex: s.index, Halen: uint8(len(to))}
	copy(a.Addr[:], to)
	conn, err := s.packets.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := conn.Control(func(fd uintptr) { err = unix.Sendto(int(fd), packet, 0, &a) })
	return errors.Join(os.NewSyscallError("sendto", err), controlErr)
}

// receive waits for a packet that the filter lets in. It returns an error once the socket is
// closed, and after any other that the kernel reports, such as that the link is down.
func (s *socket) receive(b []byte) (n int, from net.HardwareAddr, err error) {
	conn, err := s.packets.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	readErr := conn.Read(func(fd uintptr) bool {
		var a unix.Sockaddr
		n, a, err = unix.Recvfrom(int(fd), b, 0)
		if l, ok := a.(*unix.SockaddrLinklayer); ok && l.Halen == 6 {
			from = net.HardwareAddr(l.Addr[:6])
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	return n, from, errors.Join(err, readErr)
}

// close has receive return.
func (s *socket) close() error {
	return errors.Join(s.packets.Close(), unix.Close(s.group))
}
