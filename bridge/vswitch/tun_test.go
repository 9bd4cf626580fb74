package vswitch

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
)

const doorMAC = 0x0200_0000_00aa

func localOf(mac uint64) netip.Addr { return portsec.LinkLocal(hardware(mac)) }

// dryTun makes a tun port without a tun: what is written to it vanishes.
func dryTun(t testing.TB) (*tunQueue, *sender) {
	sw := New(Config{})
	t.Cleanup(func() { _ = sw.Close() })
	q := newTunQueue(doorMAC, vport.Tun{Addresses: []netip.Prefix{
		netip.MustParsePrefix("10.7.0.1/24"), netip.MustParsePrefix("fd07::1/64"),
	}})
	m := &memory{closed: make(chan struct{})}
	p, err := sw.AddPort("tun0", &Wire{kind: "memory", limits: everything, queues: []queue{m}}, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if q.file, err = duplicate(null, func(int) error { return nil }); err != nil {
		t.Fatal(err)
	}
	_ = null.Close()
	t.Cleanup(func() { _ = q.close() })
	q.begin(p)
	q.out = nil // its announcements
	return q, newSender()
}

// sends has the tun get frames, and returns what the station sends then.
func (q *tunQueue) sends(s *sender, frames ...[]byte) [][]byte {
	s.n = 0
	for _, f := range frames {
		s.add(offload.Frame{Head: f})
	}
	s.begin(vnetLen)
	q.send(s)
	out := q.out
	q.out, q.awake = nil, false
	return out
}

var (
	own4, own6     = netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1")
	guest4, guest6 = netip.MustParseAddr("10.7.0.9"), netip.MustParseAddr("fd07::9")
)

const guestMAC = 0x0200_0000_0009

// TestTunAnnounces: a station announces each address when it comes.
func TestTunAnnounces(t *testing.T) {
	q, _ := dryTun(t)
	q.begin(q.port)
	want := []netip.Addr{own4, own6, localOf(doorMAC)}
	if len(q.out) != len(want) {
		t.Fatalf("%d frames", len(q.out))
	}
	for i, data := range q.out {
		ether := data[vnetLen:]
		m, ok := parseARP(ether)
		if i > 0 {
			m, ok = parseND(ether, false)
		}
		if !ok || m.sender != want[i] || m.mac != doorMAC || macWord(ether)&groupBit == 0 {
			t.Errorf("%d: %+v, %v", i, m, ok)
		}
	}
}

// TestTunAnswers: requests for the station's addresses are answered, and no others.
func TestTunAnswers(t *testing.T) {
	ask4 := func(target netip.Addr, sender netip.Addr) []byte {
		return arpMessage(arpRequest, guestMAC, sender, 0, target)
	}
	ask6 := func(target, sender netip.Addr) []byte {
		return ndMessage(ndSolicit, 0, guestMAC, sender, solicitedNode(target), target, 0)
	}
	local := localOf(doorMAC)
	for name, test := range map[string]struct {
		frame   []byte
		from    netip.Addr // whose address the answer says
		to      uint64
		learned netip.Addr
	}{
		"ARP":                 {ask4(own4, guest4), own4, guestMAC, guest4},
		"ARP probe":           {ask4(own4, netip.IPv4Unspecified()), own4, guestMAC, netip.Addr{}},
		"ARP from elsewhere":  {ask4(own4, netip.MustParseAddr("192.0.2.1")), own4, guestMAC, netip.Addr{}},
		"ARP for another":     {frame: ask4(guest4, guest4)},
		"ARP in its own name": {ask4(own4, own4), own4, guestMAC, netip.Addr{}},
		"ND":                  {ask6(own6, guest6), own6, guestMAC, guest6},
		"ND, link-local":      {ask6(local, localOf(guestMAC)), local, guestMAC, localOf(guestMAC)},
		"ND probe":            {ask6(own6, netip.IPv6Unspecified()), own6, multicastMAC(allNodes), netip.Addr{}},
		"ND for another":      {frame: ask6(guest6, guest6)},
		"ND, wrong sum": {frame: func() []byte {
			f := ask6(own6, guest6)
			f[len(f)-1]++
			return f
		}()},
		"ND from a router away": {frame: func() []byte {
			f := ask6(own6, guest6)
			f[vnetLen+etherLen+7] = 254
			return f
		}()},
		"its own": {frame: arpMessage(arpRequest, doorMAC, own4, 0, own4)},
	} {
		q, s := dryTun(t)
		out := q.sends(s, test.frame)
		if !test.from.IsValid() {
			if len(out) != 0 || len(q.known.by) != 0 {
				t.Errorf("%s: %d answers, %d neighbors", name, len(out), len(q.known.by))
			}
			continue
		}
		if len(out) != 1 {
			t.Errorf("%s: %d answers", name, len(out))
			continue
		}
		ether := out[0][vnetLen:]
		m, ok := parseARP(ether)
		if test.from.Is6() {
			m, ok = parseND(ether, false)
		}
		if !ok || m.request || m.sender != test.from || m.mac != doorMAC || macWord(ether) != test.to {
			t.Errorf("%s: answer %+v, %v to %x", name, m, ok, macWord(ether))
		}
		switch n := q.known.by[test.learned]; {
		case test.learned.IsValid() && (n == nil || n.mac != guestMAC):
			t.Errorf("%s: not learned", name)
		case !test.learned.IsValid() && len(q.known.by) != 0:
			t.Errorf("%s: learned %v", name, q.known.by)
		}
	}
}

// ipPacket returns a packet for an address behind a vnet header and room for an Ethernet header, as
// it is read from a tun.
func ipPacket(dst netip.Addr, payload int) []byte {
	if dst.Is4() {
		ip := make([]byte, 20+payload)
		ip[0] = 0x45
		copy(ip[16:], dst.AsSlice())
		return append(make([]byte, etherLen+vnetLen), ip...)
	}
	ip := make([]byte, ipv6Len+payload)
	ip[0] = 0x60
	copy(ip[24:], dst.AsSlice())
	return append(make([]byte, etherLen+vnetLen), ip...)
}

// TestTunResolves: a packet waits until its destination answers, and then leaves in order. One that
// does not answer is asked for three times.
func TestTunResolves(t *testing.T) {
	for _, dst := range []netip.Addr{guest4, guest6} {
		q, s := dryTun(t)
		for i := range 3 {
			p := ipPacket(dst, 10)
			p[len(p)-1] = byte(i)
			if q.packet(p) {
				t.Fatal("it leaves at once")
			}
		}
		if len(q.out) != 1 {
			t.Errorf("%s: asked %d times", dst, len(q.out))
		}
		answer := arpMessage(arpReply, guestMAC, dst, doorMAC, own4)
		if dst.Is6() {
			answer = ndMessage(ndAdvertise, ndSolicited, guestMAC, dst, own6, dst, doorMAC)
		}
		out := q.sends(s, answer)
		if len(out) != 4 { // the request is among them
			t.Fatalf("%s: %d frames", dst, len(out))
		}
		for i, data := range out[1:] {
			e := data[vnetLen:]
			if macWord(e) != guestMAC || macWord(e[6:]) != doorMAC || data[len(data)-1] != byte(i) {
				t.Errorf("%s: frame %d: %x", dst, i, data)
			}
		}
		if p := ipPacket(dst, 10); !q.packet(p) || macWord(p[vnetLen:]) != guestMAC {
			t.Errorf("%s: the next one does not leave at once", dst)
		}
		if q.known.waiting != 0 {
			t.Errorf("%d bytes wait", q.known.waiting)
		}
	}
	n := newNeighbors()
	entry, _ := n.resolve(guest4, 1)
	n.wait(entry, make([]byte, 100))
	asked := 1
	for at := int64(1); len(n.by) > 0 && asked < 10; at += int64(askEvery) {
		n.tick(at, func(netip.Addr, *neighbor) { asked++ })
	}
	if asked != askTries || n.waiting != 0 {
		t.Errorf("asked %d times, %d bytes wait", asked, n.waiting)
	}
}

// TestTunBounds: neither the host nor others on the switch make the tables large.
func TestTunBounds(t *testing.T) {
	q, _ := dryTun(t)
	for i := range 5000 {
		for range 20 {
			_ = q.packet(ipPacket(netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)}), 1000))
		}
	}
	if len(q.known.by) > maxNeighbors || q.known.waiting > maxWaiting || len(q.out) > maxOut {
		t.Errorf("%d neighbors, %d bytes, %d frames", len(q.known.by), q.known.waiting, len(q.out))
	}
	q, s := dryTun(t)
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{10, 7, 0, byte(i)})
		q.sends(s, arpMessage(arpReply, guestMAC, a, doorMAC, own4), arpMessage(arpRequest, guestMAC, a, 0, a),
			ndMessage(ndAdvertise, ndOverride, guestMAC, guest6, allNodes, guest6, 0))
	}
	if len(q.known.by) != 0 {
		t.Errorf("what nobody has asked for made %d neighbors", len(q.known.by))
	}
	for i := range 5000 {
		var b [16]byte
		own := own6.As16()
		copy(b[:8], own[:8])
		binary.BigEndian.PutUint16(b[14:], uint16(i+2))
		a := netip.AddrFrom16(b)
		q.sends(s, ndMessage(ndSolicit, 0, guestMAC, a, solicitedNode(own6), own6, 0))
	}
	if len(q.known.by) > maxNeighbors {
		t.Errorf("requests made %d neighbors", len(q.known.by))
	}
	advertisement := ndMessage(ndSolicit, 0, guestMAC, guest6, allNodes, own6, 0)
	advertisement[vnetLen+etherLen+ipv6Len] = ndAdvertisement
	if q.sends(s, advertisement); s.drops[Advertised] != 1 {
		t.Errorf("a router advertisement reaches the host: %v", s.drops)
	}
}

// TestTunGroups: broadcasts and multicasts have their Ethernet addresses.
func TestTunGroups(t *testing.T) {
	q, _ := dryTun(t)
	for dst, want := range map[string]string{
		"255.255.255.255": "ff:ff:ff:ff:ff:ff", "10.7.0.255": "ff:ff:ff:ff:ff:ff",
		"224.0.0.251": "01:00:5e:00:00:fb", "239.129.2.3": "01:00:5e:01:02:03", "ff02::1:ff00:9": "33:33:ff:00:00:09",
	} {
		p := ipPacket(netip.MustParseAddr(dst), 10)
		if !q.packet(p) || net.HardwareAddr(p[vnetLen:vnetLen+6]).String() != want {
			t.Errorf("%s: %x", dst, p[vnetLen:])
		}
	}
	for _, short := range [][]byte{
		make([]byte, etherLen), make([]byte, 20), ipPacket(guest4, 0)[:40], ipPacket(guest6, 0)[:60],
	} {
		if q.packet(bytes.Clone(short)) {
			t.Errorf("%d bytes leave", len(short))
		}
	}
}

// FuzzTun has any frames sent to the tun, and any packets come from it.
func FuzzTun(f *testing.F) {
	f.Add(arpMessage(arpRequest, guestMAC, guest4, 0, own4))
	f.Add(ndMessage(ndSolicit, 0, guestMAC, guest6, solicitedNode(own6), own6, 0))
	f.Add(ndMessage(ndAdvertise, ndSolicited, guestMAC, guest6, own6, guest6, doorMAC))
	f.Add(ipPacket(guest4, 10))
	q, s := dryTun(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, out := range q.sends(s, data) {
			fr := frame{data: out}
			if fr.parse() == Delivered && fr.src != doorMAC {
				t.Errorf("the station sends %x", out)
			}
		}
		// Also in two pieces, wherever they meet.
		for at := range min(len(data), 80) {
			s.n = 0
			s.add(offload.Frame{Head: data[:at], Payload: data[at:]})
			s.begin(vnetLen)
			q.send(s)
		}
		q.out, q.awake = nil, false
		if p := append(make([]byte, etherLen), data...); q.packet(p) {
			fr := frame{data: p}
			_ = fr.parse()
		}
		q.out, q.awake = nil, false
		if len(q.known.by) > maxNeighbors || q.known.waiting > maxWaiting {
			t.Errorf("%d neighbors, %d bytes", len(q.known.by), q.known.waiting)
		}
	})
}
