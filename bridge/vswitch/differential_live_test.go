package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
)

// A line joins two hosts, by devices of the name lan0, through something that forwards frames:
//
//	outside [lan0] -- veth -- [p1] middle [..] -- [lan0] inside
type line struct {
	outside, middle, inside *host
}

// mtus are the MTUs of a line's devices in the middle, which limit what passes.
type mtus struct{ toOutside, toInside int }

func newLine(t testing.TB, first int, m mtus) *line {
	t.Helper()
	l := &line{newHost(t, first, "lan0"), newHost(t, first+1, "lan0"), newHost(t, first+2, "lan0")}
	join(t, l.outside, l.middle, "p1", m.toOutside)
	return l
}

// join makes a veth pair between a host's lan0 and a device in the middle. The host's end may
// receive more than the other end's MTU.
func join(t testing.TB, h, middle *host, port string, mtu int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = port, mtu
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: "lan0",
		PeerNamespace: netlink.NsFd(int(h.ns.Handle())), PeerMTU: 9000,
	}
	if err := middle.nl.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]*host{port: middle, "lan0": h} {
		if err := at.nl.LinkSetUp(at.link(name)); err != nil {
			t.Fatal(err)
		}
	}
}

// bridgeLine makes a line with a kernel bridge in the middle.
func bridgeLine(t testing.TB, m mtus) *line {
	t.Helper()
	l := newLine(t, 0, m)
	join(t, l.inside, l.middle, "p2", m.toInside)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "br0", 9000
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := l.middle.nl.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		l.middle.nl.LinkSetMaster(l.middle.link("p1"), br), l.middle.nl.LinkSetMaster(l.middle.link("p2"), br),
		l.middle.nl.LinkSetUp(br),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// switchLine makes a line with a switch in the middle, which has a packet port on p1 and the tap
// that is the lan0 of the inside.
func switchLine(t testing.TB, m mtus) (*line, *vswitch.Switch) {
	t.Helper()
	l, sw := newLine(t, 10, m), newSwitch(t)
	addPort(t, sw, "p1", openPacket(t, l.middle, "p1"), vport.Config{})
	tapPort(t, sw, "inside", l.inside, m.toInside)
	return l, sw
}

// tapPort adds a port on a tap to the switch. The tap is the host's lan0.
func tapPort(t testing.TB, sw *vswitch.Switch, name string, h *host, mtu int) {
	t.Helper()
	tap, err := tun.Create(h.ns, "lan0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	link, err := vswitch.LinkFile(h.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	w, err := vswitch.OpenTap(tap.Queues()...)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.nl.LinkSetMTU(h.link("lan0"), mtu); err != nil {
		t.Fatal(err)
	}
	if err := w.Follow(link); err != nil {
		t.Fatal(err)
	}
	addPort(t, sw, name, w, vport.Config{})
	if err := h.nl.LinkSetUp(h.link("lan0")); err != nil {
		t.Fatal(err)
	}
}

// A probe sends and receives frames, with their vnet headers, at a host's lan0.
type probe struct {
	t     *testing.T
	fd    int
	marks uint32
	last  []byte // destination of the marks
	fin   offload.Finisher
}

func newProbe(t *testing.T, h *host) *probe {
	t.Helper()
	p := &probe{t: t, last: []byte{2, 0, 0, 0, 0, 9}}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	err := h.ns.Do(func() (err error) {
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(p.fd) })
	timeout := unix.NsecToTimeval(int64(20 * time.Second))
	index := h.link("lan0").Attrs().Index
	promisc := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
	for _, err := range []error{
		unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
		unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptPacketMreq(p.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promisc),
		unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// ours is the prefix of the source addresses of the test's frames.
var ours = []byte{2, 0x0d, 0x1f}

// receive waits for a frame of the test and returns it finished, in one or more pieces.
func (p *probe) receive() [][]byte {
	p.t.Helper()
	b, oob := make([]byte, 1<<17), make([]byte, 128)
	for {
		n, oobn, _, _, err := unix.Recvmsg(p.fd, b, oob, 0)
		if errors.Is(err, unix.EINTR) {
			continue // a signal of Go's scheduler: a receive with a time limit does not restart
		}
		if err != nil {
			p.t.Fatalf("receive: %v", err)
		}
		h, ok := offload.Parse(b[:n])
		frame := b[offload.HeaderLen:n]
		if !ok || len(frame) < 14 || !bytes.Equal(frame[6:9], ours) {
			continue
		}
		if tag := p.tag(oob[:oobn]); tag != nil {
			frame = slices.Concat(frame[:12], tag, frame[12:])
			h = h.Shifted(len(tag))
		}
		if why := p.fin.Start(h, frame, offload.Limits{}); why != offload.OK {
			p.t.Fatalf("%+v, %d bytes: %v", h, len(frame), why)
		}
		var out [][]byte
		for frames := p.fin.Next(); len(frames) > 0; frames = p.fin.Next() {
			for _, f := range frames {
				out = append(out, slices.Concat(f.Head, f.Payload))
			}
		}
		return out
	}
}

// tag returns the tag that the kernel has removed from a frame.
func (p *probe) tag(oob []byte) []byte {
	controls, _ := unix.ParseSocketControlMessage(oob)
	i := slices.IndexFunc(controls, func(c unix.SocketControlMessage) bool {
		return c.Header.Type == unix.PACKET_AUXDATA
	})
	if i < 0 {
		return nil
	}
	aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&controls[i].Data[0]))
	if aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return nil
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, aux.Vlan_tpid), aux.Vlan_tci)
}

// A sample is a frame to be sent, with its number in the source address.
type sample struct {
	h     offload.Header
	frame []byte
	tags  int
	what  string
}

// carried sends samples from one probe to another, and returns what arrived of each.
func carried(from, to *probe, samples []sample) map[uint16][][]byte {
	from.t.Helper()
	out := map[uint16][][]byte{}
	for len(samples) > 0 {
		n := min(20, len(samples)) // a tap queues more, even if each becomes a hundred frames
		for _, s := range samples[:n] {
			b := make([]byte, offload.HeaderLen)
			s.h.Put(b)
			if _, err := unix.Write(from.fd, append(b, s.frame...)); err != nil {
				from.t.Fatalf("%s of %d bytes: %v", s.what, len(s.frame), err)
			}
		}
		samples = samples[n:]
		// A port may receive these in two ways.
		marks := [][]byte{from.mark(0x88b6, 0), from.mark(unix.ETH_P_IP, unix.IPPROTO_SCTP)}
		for _, mark := range marks {
			if _, err := unix.Write(from.fd, append(make([]byte, offload.HeaderLen), mark...)); err != nil {
				from.t.Fatal(err)
			}
		}
		for came := 0; came < len(marks); {
			frames := to.receive()
			if slices.ContainsFunc(marks, func(mark []byte) bool { return bytes.Equal(frames[0], mark) }) {
				came++
				continue
			}
			number := binary.BigEndian.Uint16(frames[0][10:])
			out[number] = append(out[number], frames...)
		}
	}
	return out
}

// mark returns a frame of that EtherType, with an IPv4 header of that protocol.
func (p *probe) mark(kind uint16, protocol byte) []byte {
	p.marks++
	ip := append([]byte{0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 9, 8, 1, 10, 9, 8, 2}, make([]byte, 26)...)
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip[:20], 0))
	binary.BigEndian.PutUint32(ip[20:], p.marks)
	return slices.Concat(p.last, ours, []byte{0xff, 0xff, 0xff, byte(kind >> 8), byte(kind)}, ip)
}

// samples returns n random samples with lengths around an MTU of 1500.
func samples(r *rand.Rand, n int) []sample {
	out := make([]sample, 0, n)
	for number := range n {
		s := sample{}
		head := slices.Concat([]byte{2, 0, 0, 0, 0, 9}, ours, []byte{0, 0, 0})
		binary.BigEndian.PutUint16(head[10:], uint16(number))
		for range r.IntN(5) {
			kind := []byte{0x81, 0}
			if r.IntN(2) == 0 {
				kind = []byte{0x88, 0xa8}
			}
			head = append(append(head, kind...), byte(r.IntN(8))<<5|byte(r.IntN(15)), byte(r.Uint32()))
			s.tags++
		}
		switch r.IntN(4) {
		case 0:
			s.what = "another protocol"
			proto := []byte{unix.IPPROTO_SCTP, unix.IPPROTO_GRE, unix.IPPROTO_ESP}[r.IntN(3)]
			transport := make([]byte, 100+r.IntN(1300))
			s.frame = slices.Concat(head, s.network(r, proto, transport), transport)
		case 1:
			payload := 1490 + r.IntN(20)
			if r.IntN(4) == 0 {
				payload = 46 + r.IntN(1400)
			}
			s.what = "plain frame"
			s.frame = slices.Concat(head, []byte{0x88, 0xb5}, make([]byte, payload))
		case 2:
			s.what = "TCP"
			s.super(r, head, unix.IPPROTO_TCP)
		default:
			s.what = "UDP"
			s.super(r, head, unix.IPPROTO_UDP)
		}
		out = append(out, s)
	}
	return out
}

// super makes a super-frame, or a frame with only a partial checksum.
func (s *sample) super(r *rand.Rand, head []byte, proto byte) {
	payload, gso, l4 := make([]byte, r.IntN(1440)), 0, 20
	if proto == unix.IPPROTO_UDP {
		l4 = 8
	}
	if r.IntN(2) == 0 && (proto == unix.IPPROTO_TCP || s.tags == 0) {
		gso = 200 + r.IntN(1200)
		payload = make([]byte, gso*(2+r.IntN(30)))
	}
	for i := range payload {
		payload[i] = byte(r.Uint32())
	}
	transport := append(make([]byte, l4), payload...)
	binary.BigEndian.PutUint32(transport, r.Uint32())
	s.h = offload.Header{Flags: offload.NeedsCsum, GSOSize: uint16(gso), CsumOffset: 6}
	if proto == unix.IPPROTO_TCP {
		s.h.CsumOffset = 16
		transport[12], transport[13] = 5<<4, byte(r.Uint32())
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	}
	ip := s.network(r, proto, transport)
	if gso > 0 {
		s.h.GSOType = offload.GSOUDPL4
		if proto == unix.IPPROTO_TCP {
			s.h.GSOType = map[byte]uint8{4: offload.GSOTCPv4, 6: offload.GSOTCPv6}[ip[2]>>4]
			if transport[13]&0x80 != 0 {
				s.h.GSOType |= offload.GSOECN
			}
		}
	}
	s.frame = slices.Concat(head, ip, transport)
	s.h.CsumStart = uint16(len(head) + len(ip))
	if gso > 0 {
		s.h.HdrLen = s.h.CsumStart + uint16(l4)
	}
}

// network returns an EtherType and an IP header, for a transport header that gets the sum of the
// pseudo header.
func (s *sample) network(r *rand.Rand, proto byte, transport []byte) []byte {
	var ip, addresses []byte
	if r.IntN(2) == 0 {
		options := 4 * r.IntN(4)
		ip = append([]byte{
			8, 0, 0x40 | byte(5+options/4), 0, 0, 0, byte(r.Uint32()), byte(r.Uint32()), 0x40, 0, 64,
			proto, 0, 0, 10, 9, 8, 1, 10, 9, 8, 2,
		}, bytes.Repeat([]byte{1}, options)...)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-2+len(transport)))
		binary.BigEndian.PutUint16(ip[12:], ^onesSum(ip[2:], 0))
		addresses = ip[14:22]
	} else {
		ip = make([]byte, 2+40)
		copy(ip, []byte{0x86, 0xdd, 0x60})
		ip[8], ip[9], ip[10], ip[26] = proto, 64, 0xfd, 0xfd
		if r.IntN(3) == 0 {
			ip[8] = unix.IPPROTO_DSTOPTS
			ip = append(ip, proto, 0, 1, 4, 0, 0, 0, 0)
		}
		binary.BigEndian.PutUint16(ip[6:], uint16(len(ip)-42+len(transport)))
		addresses = ip[10:42]
	}
	binary.BigEndian.PutUint16(transport[s.h.CsumOffset:], onesSum(addresses, int(proto)+len(transport)))
	return ip
}

// onesSum is the one's complement sum of RFC 1071.
func onesSum(b []byte, acc int) uint16 {
	for i := range b {
		acc += int(b[i]) << (8 * (1 - i&1))
	}
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

// TestLiveCarriesWhatTheBridgeCarries sends the same frames through a kernel bridge and a switch,
// in both directions. The switch must carry what the bridge carries, byte by byte.
func TestLiveCarriesWhatTheBridgeCarries(t *testing.T) {
	for name, m := range map[string]mtus{"to a tap": {9000, 1500}, "to a packet port": {1500, 9000}} {
		t.Run(name, func(t *testing.T) {
			s, _ := switchLine(t, m)
			list := samples(rand.New(rand.NewPCG(1, uint64(m.toInside))), 600)
			bridges := carriedByBridge(t, m, list)
			from, to := s.probes(t, m)
			compareCarried(t, list, carried(from, to, list), bridges)
		})
	}
}

// probes returns probes at the ends of a line: the frames go to where the MTU is 1500.
func (l *line) probes(t *testing.T, m mtus) (from, to *probe) {
	if m.toInside == 1500 {
		return newProbe(t, l.outside), newProbe(t, l.inside)
	}
	return newProbe(t, l.inside), newProbe(t, l.outside)
}

// carriedByBridge returns what a kernel bridge carries of the list.
func carriedByBridge(t *testing.T, m mtus, list []sample) map[uint16][][]byte {
	from, to := bridgeLine(t, m).probes(t, m)
	bridges := carried(from, to, list)
	if len(bridges) < 400 || len(bridges) > 590 {
		t.Errorf("the bridge carries only %d of %d frames: the test is wrong", len(bridges), len(list))
	}
	return bridges
}

// compareCarried compares what a switch and a bridge have carried of the list.
func compareCarried(t *testing.T, list []sample, switches, bridges map[uint16][][]byte) {
	t.Helper()
	t.Logf("the bridge carries %d of %d frames, the switch %d", len(bridges), len(list), len(switches))
	for n, f := range list {
		got, want := switches[uint16(n)], bridges[uint16(n)]
		what := fmt.Sprintf("%s %d with %d tags, %d bytes, %+v", f.what, n, f.tags, len(f.frame), f.h)
		switch {
		case len(want) == 0 && len(got) > 0 && f.tags < 3:
			// With more tags, any frame that is no longer than the MTU passes.
			t.Errorf("%s: the bridge drops it, the switch does not", what)
		case len(want) > 0 && !slices.EqualFunc(got, want, bytes.Equal):
			t.Errorf("%s: %d frames, %d by the bridge", what, len(got), len(want))
		}
	}
}
