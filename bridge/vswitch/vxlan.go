package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
)

// OpenVXLAN makes a wire to other hosts: each frame is sent in a UDP datagram, behind a VXLAN
// header (RFC 7348), to the host behind which its destination was seen, or to all. So the other end
// may be another switch, a VXLAN device of a kernel, Open vSwitch or a router. It needs no
// privilege. nameOrPath is that of the network namespace whose addresses it uses (see OpenPacket).
//
// Only the listed hosts are heard. A frame of theirs is never sent back to one of them.
func OpenVXLAN(nameOrPath string, cfg vport.VXLAN) (*Wire, error) {
	files, err := VXLANFiles(nameOrPath, cfg)
	if err != nil {
		return nil, err
	}
	defer fdpass.CloseAll(files)
	return OpenVXLANFiles(files, cfg)
}

// VXLANFiles opens the sockets of OpenVXLAN, so that another process can make the wire. The caller
// closes them.
func VXLANFiles(nameOrPath string, cfg vport.VXLAN) ([]*os.File, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open VXLAN: %w", err)
	}
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	files, err := endpoint.VXLANFiles(ns, cfg)
	if err != nil {
		return nil, fmt.Errorf("open VXLAN: %w", err)
	}
	return files, nil
}

// OpenVXLANFiles makes a wire from the files of VXLANFiles. It copies the files; the caller keeps
// its own and may close them. It makes the sockets non-blocking, the caller's included.
func OpenVXLANFiles(files []*os.File, cfg vport.VXLAN) (*Wire, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open VXLAN: %w", err)
	}
	if len(files) != endpoint.VXLANFileCount {
		return nil, fmt.Errorf("open VXLAN: %d files: want %d", len(files), endpoint.VXLANFileCount)
	}
	q := newVXLANQueue(cfg)
	err := q.use(files)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open VXLAN: %w", err), q.close())
	}
	q.lookMTU()
	return &Wire{kind: "vxlan", limits: offload.Limits{Recut: true}, overlay: q, queues: []queue{q}}, nil
}

// VXLAN headers (RFC 7348, section 5).
const (
	vxlanLen  = 8
	vxlanFlag = 0x08 // the header has a VNI

	// The payload is that of the Generic Protocol Extension, and may be no Ethernet frame.
	vxlanGPE = 0x04
)

const (
	vxlanMessages = 32 // received at a time
	vxlanFront    = 8  // bytes before a datagram, of which the vnet header takes those that it needs
	vxlanSlot     = vxlanFront + 64<<10
	vxlanCopies   = 256 << 10
)

// vxlanQueue exchanges frames with other hosts.
type vxlanQueue struct {
	*polled // the socket that receives
	probe   file
	senders []file

	header  [vxlanLen]byte // before each frame
	vni     uint32
	remotes []vxlanRemote
	by      map[netip.Addr]int // remotes by address
	over    int                // bytes that a frame grows by, without its own Ethernet header

	port   *Port         // set before the first receive
	table  *FDB          // the remote host behind which an address is, in place of a port
	lost   atomic.Uint32 // datagrams for which the socket had no room
	outer  atomic.Int32  // the smallest MTU of the ways to the remote hosts; 0 if none is known
	single atomic.Bool   // the kernel cannot segment datagrams

	// The current receive.
	fill   func(fd uintptr) (int, error) // the method fillFrames, bound once
	frames []frame
	msgs   [vxlanMessages]mmsghdr
	iovs   [vxlanMessages]unix.Iovec
	names  [vxlanMessages]unix.RawSockaddrInet6
	aux    [vxlanMessages][vxlanAux]byte
	slots  []byte
	last   int // the remote host of the last datagram
	got    int // messages
	at     int // the one whose frames are taken now
	now    datagram
	join   offload.Joiner
	copies []byte
}

// vxlanAux is the room for the control message UDP_GRO, an int.
const vxlanAux = unix.SizeofCmsghdr + 8

// A vxlanRemote is a remote host, with its address for sendmsg(2).
type vxlanRemote struct {
	addr    netip.Addr
	name    unix.RawSockaddrInet6
	nameLen uint32
}

func newVXLANQueue(cfg vport.VXLAN) *vxlanQueue {
	q := &vxlanQueue{
		vni: uint32(cfg.VNI), by: map[netip.Addr]int{}, over: cfg.Overhead() - etherLen,
		slots: make([]byte, vxlanMessages*vxlanSlot), copies: make([]byte, vxlanCopies),
	}
	q.header[0] = vxlanFlag
	binary.BigEndian.PutUint32(q.header[4:], q.vni<<8)
	for i, a := range cfg.Remotes {
		q.by[a] = i
		q.remotes = append(q.remotes, remoteOf(a, cfg.UDPPort()))
	}
	q.fill = q.fillFrames
	for i := range q.msgs {
		slot := q.slots[i*vxlanSlot:]
		q.iovs[i].Base = &slot[vxlanFront]
		q.iovs[i].SetLen(vxlanSlot - vxlanFront)
		q.msgs[i].hdr.Iov = &q.iovs[i]
		q.msgs[i].hdr.SetIovlen(1)
		q.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&q.names[i]))
	}
	return q
}

func remoteOf(a netip.Addr, port int) vxlanRemote {
	r := vxlanRemote{addr: a}
	if a.Is6() {
		r.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: bigEndian(port), Addr: a.As16()}
		r.nameLen = unix.SizeofSockaddrInet6
		return r
	}
	v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&r.name))
	*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: bigEndian(port), Addr: a.As4()}
	r.nameLen = unix.SizeofSockaddrInet4
	return r
}

// bigEndian returns a number whose memory is that of n in network order.
func bigEndian(n int) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, uint16(n)))
}

// use copies the files.
func (q *vxlanQueue) use(files []*os.File) (err error) {
	check := func(fd int) error { return endpoint.CheckVXLAN(fd, q.remotes[0].addr.Is6()) }
	if q.polled, err = duplicatePolled(files[0], check); err != nil {
		return err
	}
	if q.probe, err = duplicateAs(files[1], check, unpolled); err != nil {
		return err
	}
	for _, f := range files[2:] {
		own, err := duplicateAs(f, check, unpolled)
		if err != nil {
			return err
		}
		q.senders = append(q.senders, own)
	}
	return nil
}

func (q *vxlanQueue) close() error {
	var errs []error
	if q.polled != nil {
		errs = append(errs, q.polled.close())
	}
	if q.probe.os != nil {
		errs = append(errs, q.probe.close())
	}
	for _, f := range q.senders {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// begin makes the table, before the port's first frame.
func (q *vxlanQueue) begin(p *Port) {
	q.port = p
	q.table = NewFDB(0, p.sw.fdb.ageingTime())
	q.table.Sweep(p.sw.fdb.now.Load())
}

// lookMTU asks the kernel for the MTUs of the ways to the remote hosts, and reports whether the
// smallest has changed. Only one goroutine may call it.
func (q *vxlanQueue) lookMTU() (changed bool) {
	least := 0
	_ = q.probe.control(func(fd int) error {
		for i := range q.remotes {
			if mtu, ok := endpoint.MTUTo(fd, q.remotes[i].addr); ok && (least == 0 || mtu < least) {
				least = mtu
			}
		}
		return nil
	})
	return least != 0 && int32(least) != q.outer.Swap(int32(least))
}

// leastMTU is the smallest MTU in bytes of IPv4 (RFC 791).
const leastMTU = 68

// mtu returns the MTU for frames in the segment; 1500 bytes for the whole if no way is known.
func (q *vxlanQueue) mtu() int {
	outer := int(q.outer.Load())
	if outer == 0 {
		outer = defaultMTU
	}
	return min(max(outer-q.over-etherLen, leastMTU), maxFrame-etherLen)
}

// tickOverlay ages the table, and follows the MTUs.
func (p *Port) tickOverlay(now uint32) {
	q := p.wire.overlay
	q.table.Sweep(now)
	if q.lookMTU() {
		p.limit()
	}
}

// kernelDrops returns the number of datagrams since the last call for which the socket had no room.
func (q *vxlanQueue) kernelDrops() (why Reason, n uint64) {
	// enum SK_MEMINFO_DROPS of include/uapi/linux/sock_diag.h, the last of 9 words.
	const drops, words = 8, 9
	var info [words]uint32
	_ = q.control(func(fd int) error {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		return errnoError(errno)
	})
	was := q.lost.Swap(info[drops])
	return Overrun, uint64(info[drops] - was)
}

func errnoError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
