package vswitch

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
)

// A memory is a queue that keeps what is sent to it, and never receives. The test passes frames
// with any vnet header directly to the port's receiver.
type memory struct {
	closed chan struct{}
	sent   [][]byte
}

func (m *memory) receive([]frame) (int, error) {
	<-m.closed
	return 0, os.ErrClosed
}

func (m *memory) send(s *sender) {
	for i := range s.n {
		f := &s.list[i]
		m.sent = append(m.sent, slices.Concat(f.Head, f.Payload, slices.Concat(f.Rest...)))
		s.note(i, 0)
	}
}

func (m *memory) close() error {
	close(m.closed)
	return nil
}

// everything is the limits of a tap.
var everything = offload.Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: vnetLen}

// memoryLAN makes a switch whose ports are memories with those limits.
func memoryLAN(
	tb testing.TB, ports map[string]vport.Config, limits map[string]offload.Limits,
) (*Switch, map[string]*memory) {
	sw, queues := New(Config{}), map[string]*memory{}
	tb.Cleanup(func() { _ = sw.Close() })
	for name, cfg := range ports {
		queues[name] = &memory{closed: make(chan struct{})}
		if _, err := sw.AddPort(name, &Wire{kind: "memory", limits: limits[name], queues: []queue{queues[name]}},
			cfg); err != nil {
			tb.Fatal(err)
		}
	}
	return sw, queues
}

func receiverOf(sw *Switch, port string) *receiver {
	return newReceiver(sw, sw.table.Load().find(port), 0)
}

// superFrame returns a super-frame of TCP over IPv4 with its vnet header.
func superFrame(payload, gso int, tags ...string) []byte {
	const ip, tcp = 20, 20
	f := etherFrame(mac(2), mac(1), tags, 0)
	l3 := len(f)
	binary.BigEndian.PutUint16(f[l3-2:], 0x0800)
	f = append(f, make([]byte, ip+tcp+payload)...)
	f[l3], f[l3+8], f[l3+9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(f[l3+2:], uint16(ip+tcp+payload))
	f[l3+ip+12] = tcp / 4 << 4
	binary.BigEndian.PutUint16(f[l3+ip+16:], uint16(6+tcp+payload)) // sum of the pseudo header
	h := offload.Header{
		Flags: offload.NeedsCsum, GSOType: offload.GSOTCPv4, GSOSize: uint16(gso),
		HdrLen: uint16(l3 + ip + tcp), CsumStart: uint16(l3 + ip), CsumOffset: 16,
	}
	if gso == 0 {
		h.GSOType = offload.GSONone
	}
	data := make([]byte, vnetLen)
	h.Put(data)
	return append(data, f...)
}

// everyTunnel is the limits of a tap since Linux 6.17.
var everyTunnel = func() offload.Limits {
	l := everything
	l.Tunnels, l.VnetHdr = true, offload.TunnelHeaderLen
	return l
}()

// vxlanFrame returns a super-frame in VXLAN.
func vxlanFrame(csum bool) []byte {
	inner := superFrame(5000, 1400)
	h, _ := offload.Parse(inner)
	inner = inner[vnetLen:]
	binary.BigEndian.PutUint16(inner[etherLen+10:], ^sumOf(inner[etherLen:etherLen+20], 0))
	outer := etherFrame(mac(9), mac(1), nil, 20+8+8)
	ip := outer[etherLen:]
	clear(ip)
	binary.BigEndian.PutUint16(outer[macsLen:], 0x0800)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(inner)))
	binary.BigEndian.PutUint16(ip[10:], ^sumOf(ip[:20], 0))
	binary.BigEndian.PutUint16(ip[22:], 4789)
	binary.BigEndian.PutUint16(ip[24:], uint16(16+len(inner)))
	if csum {
		binary.BigEndian.PutUint16(ip[26:], sumOf(nil, unix.IPPROTO_UDP+16+len(inner)))
	}
	ip[28] = 8
	h = h.Shifted(len(outer))
	data := make([]byte, vnetLen)
	h.Put(data)
	return append(append(data, outer...), inner...)
}

// TestTunnelsInOnePiece sends a tunnel's super-frame to a target that takes it, with and without a
// tag, and to one that does not.
func TestTunnelsInOnePiece(t *testing.T) {
	for _, csum := range []bool{false, true} {
		sw, queues := memoryLAN(t,
			map[string]vport.Config{"in": access(10), "whole": access(10), "tagged": trunkAll(1), "cut": access(10)},
			map[string]offload.Limits{"in": everything, "whole": everyTunnel, "tagged": everyTunnel, "cut": everything})
		r := receiverOf(sw, "in")
		r.frames[0] = frame{data: vxlanFrame(csum)}
		r.input(r.frames[:1])
		for name, want := range map[string]struct{ frames, outer int }{
			"whole":  {1, 34},
			"tagged": {1, 38}, "cut": {4, 0},
		} {
			sent := queues[name].sent
			if len(sent) != want.frames {
				t.Errorf("%s got %d frames", name, len(sent))
				continue
			}
			if want.outer == 0 {
				continue
			}
			h, _ := offload.Parse(sent[0])
			outer, inner := binary.LittleEndian.Uint16(sent[0][20:]), binary.LittleEndian.Uint16(sent[0][22:])
			if int(outer) != want.outer || int(inner) != want.outer+8+8+etherLen ||
				h.GSOType != offload.GSOTCPv4|0x20 || (h.Flags&8 != 0) != csum {
				t.Errorf("%s: %+v, outer UDP header at %d, inner IP header at %d", name, h, outer, inner)
			}
			if int(h.CsumStart) != int(inner)+20 {
				t.Errorf("%s: %+v, the inner IP header is at %d", name, h, inner)
			}
		}
	}
}

// FuzzInput passes any header and any frame to the switch. What leaves must be consistent, no
// larger than the target takes, and only at ports that the frame was for.
func FuzzInput(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(superFrame(5000, 1448))
	f.Add(superFrame(5000, 1448, "8100:10"))
	f.Add(superFrame(5000, 1448, "88a8:1", "8100:10"))
	f.Add(superFrame(100, 0))
	f.Add(vxlanFrame(false))
	f.Add(vxlanFrame(true))
	f.Add(append(make([]byte, vnetLen), etherFrame(all, mac(1), nil, 46)...))
	for i := range vnetLen { // invalid headers
		lie := superFrame(3000, 1000)
		lie[i] ^= 0xff
		f.Add(lie)
	}
	ports := map[string]vport.Config{
		"in": trunkAll(1), "tap": {}, "vlan": access(10), "socket": trunkAll(0),
		"other": {}, "tunnels": trunkAll(1),
	}
	sw, queues := memoryLAN(f, ports, map[string]offload.Limits{
		"in": everything, "tap": everything, "vlan": everything,
		"tunnels": everyTunnel,
	})
	if err := sw.fdb.AddStatic(KeyOf(mac(2), defaultVLAN), sw.table.Load().find("tap").index); err != nil {
		f.Fatal(err)
	}
	r := receiverOf(sw, "in")
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		r.frames[0] = frame{data: data}
		r.input(r.frames[:1])

		known := len(before) >= vnetLen+etherLen && bytes.Equal(before[vnetLen:vnetLen+6], mac(2)) &&
			binary.BigEndian.Uint16(before[vnetLen+macsLen:]) != etherTypeVLAN
		for name, q := range queues {
			limits := *sw.table.Load().find(name).limits.Load()
			if len(q.sent) > 0 && (name == "in" || known && name != "tap") {
				t.Errorf("%s got a frame for another port: %x", name, before)
			}
			sent := q.sent
			q.sent = nil
			for _, out := range sent {
				h := offload.Header{}
				if limits.VnetHdr > 0 {
					h, _ = offload.Parse(out)
					h = h.WithoutTunnel()
				}
				ether := out[limits.VnetHdr:]
				if why := offload.Check(h, ether); why != offload.OK || !offload.Fits(h, ether, limits) {
					t.Errorf("%s got a frame that does not fit: %+v (%s), %d bytes", name, h, why, len(ether))
				}
			}
		}
	})
}

// TestFinishesWhatATargetDoesNotTake sends a super-frame, and a frame with a partial checksum, to
// ports with and without tags, offloads and vnet headers.
func TestFinishesWhatATargetDoesNotTake(t *testing.T) {
	ports := map[string]vport.Config{
		"in": trunkAll(1), "tap": trunkAll(1), "vlantap": access(10),
		"socket": trunkAll(1), "vlansocket": access(10),
	}
	limits := map[string]offload.Limits{"in": everything, "tap": everything, "vlantap": everything}
	for _, c := range []struct {
		payload, gso, frames int
	}{{3000, 1000, 3}, {500, 0, 1}} {
		sw, queues := memoryLAN(t, ports, limits)
		r := receiverOf(sw, "in")
		in := superFrame(c.payload, c.gso, "8100:10")
		r.frames[0] = frame{data: bytes.Clone(in)}
		r.input(r.frames[:1])
		untagged := superFrame(c.payload, c.gso)
		if got := queues["tap"].sent; len(got) != 1 || !bytes.Equal(got[0], in) {
			t.Errorf("tap: %x, want %x", got, in)
		}
		if got := queues["vlantap"].sent; len(got) != 1 || !bytes.Equal(got[0], untagged) {
			t.Errorf("tap with VLAN: %x, want %x", got, untagged)
		}
		tagged, plain := queues["socket"].sent, queues["vlansocket"].sent
		if len(tagged) != c.frames || len(plain) != c.frames {
			t.Fatalf("%d and %d frames, want %d", len(tagged), len(plain), c.frames)
		}
		for i := range plain {
			if want := append(bytes.Clone(tagged[i][:macsLen]), tagged[i][macsLen+tagLen:]...); !bytes.Equal(plain[i],
				want) {
				t.Errorf("frame %d: %x with VLAN, %x without", i, plain[i], want)
			}
			if sum := sumOf(plain[i][34:], 6+len(plain[i])-34); sum != 0xffff {
				t.Errorf("frame %d: the TCP checksum is wrong: %#x", i, sum)
			}
		}
	}
}

// sumOf sums a TCP segment between addresses of zeros. pseudo is the rest of its pseudo header.
// 0xffff is the valid result.
func sumOf(b []byte, pseudo int) uint16 {
	sum := uint64(pseudo)
	for i := range b {
		sum += uint64(b[i]) << (8 * (1 - i&1))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func TestSmallerMTU(t *testing.T) {
	sw, queues := memoryLAN(t, map[string]vport.Config{"in": {}, "small": {MTU: 1000}, "jumbo": {MTU: 9000}},
		map[string]offload.Limits{"in": everything, "small": everything, "jumbo": everything})
	r := receiverOf(sw, "in")
	for i, data := range [][]byte{
		superFrame(5000, 1448), superFrame(5000, 964), superFrame(964, 0), superFrame(965, 0),
		superFrame(9004-40, 0), superFrame(9005-40, 0),
	} {
		r.frames[i] = frame{data: data}
	}
	r.input(r.frames[:6])
	small, jumbo := sw.table.Load().find("small"), sw.table.Load().find("jumbo")
	if len(queues["small"].sent) != 2 || small.Dropped(TooBig) != 4 || len(queues["jumbo"].sent) != 5 ||
		jumbo.Dropped(TooBig) != 1 {
		t.Errorf("%d frames at the small port, %d too big; %d at the other, %d too big",
			len(queues["small"].sent), small.Dropped(TooBig), len(queues["jumbo"].sent), jumbo.Dropped(TooBig))
	}
}

// TestOrder sends a batch of frames to one port and to all. None may overtake another.
func TestOrder(t *testing.T) {
	sw, queues := memoryLAN(t, map[string]vport.Config{"in": {}, "a": {}, "b": {}}, nil)
	for i, name := range []string{"a", "b"} {
		if err := sw.fdb.AddStatic(KeyOf(mac(byte(i+10)), defaultVLAN), sw.table.Load().find(name).index); err != nil {
			t.Fatal(err)
		}
	}
	r := receiverOf(sw, "in")
	for i, dst := range []net.HardwareAddr{mac(10), mac(11), all, mac(11), mac(10), mac(99), mac(10)} {
		r.frames[i] = frame{data: append(make([]byte, vnetLen), etherFrame(dst, mac(1), nil, 40+i)...)}
	}
	r.input(r.frames[:7])
	for name, want := range map[string][]int{"a": {0, 2, 4, 5, 6}, "b": {1, 2, 3, 5}} {
		var got []int
		for _, f := range queues[name].sent {
			got = append(got, len(f)-etherLen-40)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s got frames %v, want %v", name, got, want)
		}
	}
}
