package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
)

// OpenTun makes a wire from the queue of a tun (include/uapi/linux/if_tun.h), a device for IP
// packets: the port is a station of that MAC address which answers for the addresses, and behind
// which the kernel of the tun's netns is. Frames for the station go to the tun without Ethernet
// headers. For a packet from the tun, the port asks the stations on the switch for its destination
// (ARP, neighbor discovery).
//
// The port must be locked to the address (vport.Config.MACs). OpenTun copies the fd; the caller
// keeps its own and may close it. It also changes settings of the original fd, as OpenTap does.
func OpenTun(f *os.File, mac net.HardwareAddr, cfg vport.Tun) (*Wire, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open tun: %w", err)
	}
	if len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("open tun: address %s: want 6 bytes, not multicast", mac)
	}
	var limits offload.Limits
	var device string
	own, err := duplicate(f, func(fd int) (err error) {
		device, limits, err = endpoint.SetTun(fd)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open tun: %w", err)
	}
	q := newTunQueue(macWord(mac), cfg)
	q.file = own
	return &Wire{kind: "tun", device: device, limits: limits, tun: q, queues: []queue{q}}, nil
}

// tunQueue is a station that has no more than addresses, and the tun behind it.
type tunQueue struct {
	file
	mac  uint64
	nets []netip.Prefix // own addresses, of which the last one is link-local if any is of IPv6
	port *Port          // set before the first receive

	// The current receive.
	drain  func(fd uintptr) bool // the method drainTun, bound once
	room   []byte
	frames []frame
	n      int
	err    error

	mu    sync.Mutex // held for what follows
	known neighbors
	out   [][]byte // own frames, which the switch receives next
	awake bool     // receive is to look at out
	timer bool     // receive is to tick
}

// maxOut is how many own frames a station may have to send. Further ones are lost, as those
// of a station are whose queue is full.
const maxOut = 256

func newTunQueue(mac uint64, cfg vport.Tun) *tunQueue {
	q := &tunQueue{mac: mac, nets: slices.Clone(cfg.Addresses), room: make([]byte, tapRoom), known: newNeighbors()}
	if slices.ContainsFunc(q.nets, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		q.nets = append(q.nets, netip.PrefixFrom(portsec.LinkLocal(hardware(mac)), 64))
	}
	q.drain = q.drainTun
	return q
}

// begin has the station announce its addresses, since another one may have had them.
func (q *tunQueue) begin(p *Port) {
	q.port = p
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range q.nets {
		if a := n.Addr(); a.Is4() {
			q.send1(arpMessage(arpRequest, q.mac, a, 0, a))
		} else {
			q.send1(ndMessage(ndAdvertise, ndOverride, q.mac, a, allNodes, a, 0))
		}
	}
}

// send1 has the switch receive an own frame. q.mu is held.
func (q *tunQueue) send1(data []byte) {
	if len(q.out) < maxOut {
		q.out = append(q.out, data)
	}
}

// wake makes receive look at what is to be sent. q.mu is held.
func (q *tunQueue) wake() {
	if len(q.out) > 0 && !q.awake {
		q.awake = true
		_ = q.os.SetReadDeadline(time.Unix(1, 0))
	}
}

func (q *tunQueue) receive(frames []frame) (int, error) {
	for {
		if n := q.take(frames); n > 0 {
			return n, nil
		}
		q.frames, q.n, q.err = frames, 0, nil
		err := q.conn.Read(q.drain)
		switch {
		case err == nil && (q.n > 0 || q.err != nil):
			return q.n, q.err
		case err == nil: // there are own frames
		case errors.Is(err, os.ErrDeadlineExceeded):
			q.tick()
		case q.conn.Control(func(uintptr) {}) != nil: // it is closed
			return 0, err
		default: // as of a tap: the device is being deleted
			return 0, fmt.Errorf("read: %w", unix.EBADFD)
		}
	}
}

// take takes own frames.
func (q *tunQueue) take(frames []frame) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n < len(frames) && n < len(q.out) {
		frames[n] = frame{data: q.out[n]}
		n++
	}
	q.out = slices.Delete(q.out, 0, n)
	if len(q.out) == 0 && q.awake {
		q.awake = false
		q.setTimer()
	}
	return n
}

// setTimer makes receive tick a while later, if there is reason to. q.mu is held.
func (q *tunQueue) setTimer() {
	var at time.Time
	if q.timer {
		at = time.Now().Add(askEvery / 4)
	}
	_ = q.os.SetReadDeadline(at)
}

// tick asks neighbors again that have not answered.
func (q *tunQueue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	dropped, more := q.known.tick(q.port.sw.now(), func(a netip.Addr, n *neighbor) { q.ask(a, n) })
	q.port.drops[Unanswered].Add(uint64(dropped))
	if q.timer = more; !q.awake {
		q.setTimer()
	}
}

// ask has the station ask for an address: all, or a neighbor that was known. q.mu is held.
func (q *tunQueue) ask(a netip.Addr, n *neighbor) {
	own, ok := q.ownFor(a)
	if !ok {
		return
	}
	to := uint64(0)
	if n.known && n.tries < askTries {
		to = n.mac
	}
	switch {
	case a.Is4():
		q.send1(arpMessage(arpRequest, q.mac, own, to, a))
	case to != 0:
		q.send1(ndMessage(ndSolicit, 0, q.mac, own, a, a, to))
	default:
		q.send1(ndMessage(ndSolicit, 0, q.mac, own, solicitedNode(a), a, 0))
	}
}

// ownFor returns the station's address from which it speaks to another one.
func (q *tunQueue) ownFor(a netip.Addr) (own netip.Addr, ok bool) {
	for _, p := range q.nets {
		switch {
		case p.Addr().Is4() != a.Is4():
		case p.Contains(a):
			return p.Addr(), true
		default: // the link-local one if no other is in the neighbor's network
			own, ok = p.Addr(), true
		}
	}
	return own, ok
}

func (q *tunQueue) isOwn(a netip.Addr) bool {
	return slices.ContainsFunc(q.nets, func(p netip.Prefix) bool { return p.Addr() == a })
}

// drainTun reads packets until there are no more, and makes them frames. It reports whether it is
// done; if not, the caller waits until there is something to read.
func (q *tunQueue) drainTun(fd uintptr) bool {
	room := q.room
	for q.n < len(q.frames) && len(room) >= tapRead+etherLen {
		n, errno := read(fd, room[etherLen:etherLen+tapRead])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return q.n > 0
		case errno != 0:
			if q.n == 0 { // else the next call gets it again
				q.err = fmt.Errorf("read: %w", errno)
			}
			return true
		}
		data := room[: etherLen+n : etherLen+n]
		if q.packet(data) {
			q.frames[q.n] = frame{data: data}
			q.n++
			room = room[min((len(data)+63)&^63, len(room)):]
		}
		if q.hasOut() {
			return true
		}
	}
	return true
}

func (q *tunQueue) hasOut() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.out) > 0
}

// packet makes a frame of a packet from the tun, whose vnet header follows room for an Ethernet
// header, and reports whether the frame can leave now. Else the packet is dropped, or waits.
func (q *tunQueue) packet(data []byte) bool {
	h, ok := offload.Parse(data[etherLen:])
	ip := data[min(vnetLen+etherLen, len(data)):]
	dst, kind := destination(ip)
	if !ok || !dst.IsValid() {
		q.port.drop(Short)
		return false
	}
	h.Shifted(etherLen).Put(data)
	mac, ok := q.groupMAC(dst)
	if !ok {
		mac, ok = q.resolve(dst, kind, data)
	}
	if ok {
		putEther(data[vnetLen:], mac, q.mac, kind)
	}
	return ok
}

// destination returns the destination address and EtherType of an IP packet.
func destination(ip []byte) (dst netip.Addr, kind uint16) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(ip[16:20])), etherTypeIPv4
	case len(ip) >= ipv6Len && ip[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(ip[24:40])), etherTypeIPv6
	}
	return dst, 0
}

// groupMAC returns the Ethernet address for a multicast or broadcast address.
func (q *tunQueue) groupMAC(dst netip.Addr) (mac uint64, ok bool) {
	switch {
	case dst.IsMulticast():
		return multicastMAC(dst), true
	case dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return broadcast, true
	case !dst.Is4():
		return 0, false
	}
	return broadcast, slices.ContainsFunc(q.nets, func(p netip.Prefix) bool {
		return p.Addr().Is4() && p.Bits() < 31 && p.Contains(dst) && dst == lastOf(p)
	})
}

// lastOf returns the broadcast address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-p.Bits())-1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// resolve returns the Ethernet address of a neighbor. If it is not known, it has the frame wait,
// whose addresses are still to be written, and the neighbor asked.
func (q *tunQueue) resolve(dst netip.Addr, kind uint16, data []byte) (mac uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, can := q.ownFor(dst); !can {
		q.port.drop(Unanswered)
		return 0, false
	}
	n, ask := q.known.resolve(dst, q.port.sw.now())
	if n == nil {
		q.port.drop(Unanswered)
		return 0, false
	}
	if ask {
		q.ask(dst, n)
		if q.timer = true; !q.awake {
			q.setTimer()
		}
	}
	if n.known {
		return n.mac, true
	}
	binary.BigEndian.PutUint16(data[vnetLen+macsLen:], kind)
	if !q.known.wait(n, data) {
		q.port.drop(Full)
	}
	return 0, false
}

func (q *tunQueue) close() error { return q.file.close() }

func hardware(mac uint64) net.HardwareAddr { return Key(mac << vidBits).MAC() }
