package vswitch

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
)

// vxlanOf returns a VXLAN packet.
func vxlanOf(vni int, ether []byte) []byte {
	b := []byte{vxlanFlag, 0, 0, 0}
	return append(binary.BigEndian.AppendUint32(b, uint32(vni)<<8), ether...)
}

// dryVXLAN makes a port without sockets, of VNI 77 and the host 192.0.2.2.
func dryVXLAN(t testing.TB) *vxlanQueue {
	sw := New(Config{})
	t.Cleanup(func() { _ = sw.Close() })
	q := newVXLANQueue(vport.VXLAN{VNI: 77, Remotes: []netip.Addr{netip.MustParseAddr("192.0.2.2")}})
	m := &memory{closed: make(chan struct{})}
	p, err := sw.AddPort("vx", &Wire{kind: "memory", limits: everything, queues: []queue{m}}, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	q.begin(p)
	return q
}

// datagrams has the queue take datagrams, which are from a remote host or not, with what the kernel
// says of their segments. It calls each with every batch.
func (q *vxlanQueue) datagrams(each func([]frame), known bool, size int, datagrams ...[]byte) {
	for i, d := range datagrams {
		q.msgs[i].len = uint32(copy(q.slots[i*vxlanSlot+vxlanFront:(i+1)*vxlanSlot], d))
		q.names[i] = q.remotes[0].name
		if !known {
			(*unix.RawSockaddrInet4)(unsafe.Pointer(&q.names[i])).Addr[3]++
		}
		q.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
		q.msgs[i].hdr.SetControllen(0)
		if size > 0 {
			c := (*unix.Cmsghdr)(unsafe.Pointer(&q.aux[i]))
			c.Level, c.Type = unix.SOL_UDP, unix.UDP_GRO
			binary.NativeEndian.PutUint32(q.aux[i][unix.SizeofCmsghdr:], uint32(size))
			q.msgs[i].hdr.SetControllen(vxlanAux)
		}
	}
	q.got, q.at = len(datagrams), 0
	q.open()
	var frames [batchSize]frame
	q.frames = frames[:]
	for n := q.take(); n > 0; n = q.take() {
		each(frames[:n])
	}
}

// TestVXLANPackets has one datagram of each kind, good and bad.
func TestVXLANPackets(t *testing.T) {
	q := dryVXLAN(t)
	ether := etherFrame(mac(2), mac(1), nil, 100)
	tagged := etherFrame(mac(2), mac(3), []string{"8100:5"}, 100)
	for name, test := range map[string]struct {
		data    []byte
		strange bool
		size    int
		want    []Reason
	}{
		"a frame":         {data: vxlanOf(77, ether), want: []Reason{Delivered}},
		"reserved bits":   {data: append([]byte{0x88, 1, 2, 3}, vxlanOf(77, ether)[4:]...), want: []Reason{Delivered}},
		"another VNI":     {data: vxlanOf(78, ether), want: []Reason{OtherSegment}},
		"no VNI":          {data: append([]byte{0, 0, 0, 0}, vxlanOf(77, ether)[4:]...), want: []Reason{OtherSegment}},
		"GPE":             {data: append([]byte{0x0c, 0, 0, 1}, vxlanOf(77, ether)[4:]...), want: []Reason{OtherSegment}},
		"nothing":         {want: []Reason{OtherSegment}},
		"half a header":   {data: vxlanOf(77, nil)[:7], want: []Reason{OtherSegment}},
		"no frame":        {data: vxlanOf(77, nil), want: []Reason{Short}},
		"half an address": {data: vxlanOf(77, ether[:9]), want: []Reason{Short}},
		"half a tag":      {data: vxlanOf(77, tagged[:16]), want: []Reason{Short}},
		"a stranger":      {data: vxlanOf(77, ether), strange: true, want: []Reason{Stranger}},
		"several":         {},
	} {
		if test.want == nil {
			// Equal lengths, as the kernel joins only such datagrams.
			test.size = vxlanLen + len(ether)
			test.data = bytes.Join([][]byte{
				vxlanOf(77, ether), vxlanOf(78, ether), vxlanOf(77, tagged[:len(ether)]), vxlanOf(77, ether[:50]),
			}, nil)
			test.want = []Reason{Delivered, OtherSegment, Delivered, Delivered}
		}
		var got []Reason
		q.datagrams(func(frames []frame) {
			for i := range frames {
				why := frames[i].lost
				if why == Delivered {
					why = frames[i].parse()
				}
				got = append(got, why)
			}
		}, !test.strange, test.size, test.data)
		if len(got) != len(test.want) {
			t.Errorf("%s: %v", name, got)
			continue
		}
		for i, why := range got {
			if why != test.want[i] {
				t.Errorf("%s: %v, want %v", name, got, test.want)
			}
		}
	}
	if q.table.Lookup(keyOf(macWord(ether[6:]), 0)) != 0 || q.table.Lookup(keyOf(macWord(tagged[6:]), 5)) != 0 {
		t.Errorf("the sources are not learned: %+v", q.table.Dump())
	}
}

// TestVXLANManyDatagrams has more frames than one batch takes, of datagrams that the kernel has
// joined. Each frame arrives once and as it was.
func TestVXLANManyDatagrams(t *testing.T) {
	q := dryVXLAN(t)
	var datagrams, want [][]byte
	for n := range 20 {
		var packets [][]byte
		for i := range 40 {
			f := etherFrame(mac(2), mac(1), nil, 1400)
			f[20], f[21] = byte(n), byte(i)
			want = append(want, f)
			packets = append(packets, vxlanOf(77, f))
		}
		datagrams = append(datagrams, bytes.Join(packets, nil))
	}
	n := 0
	q.datagrams(func(frames []frame) {
		for _, f := range frames {
			if n == len(want) || f.lost != Delivered || !bytes.Equal(f.ether(), want[n]) || f.data[0] != 0 {
				t.Fatalf("frame %d: %v", n, f.lost)
			}
			n++
		}
	}, true, vxlanLen+len(want[0]), datagrams...)
	if n != len(want) {
		t.Errorf("%d of %d frames", n, len(want))
	}
}

// FuzzVXLAN has any datagrams received, and what comes of them forwarded.
func FuzzVXLAN(f *testing.F) {
	super := superFrame(5000, 1400)[vnetLen:]
	f.Add(vxlanOf(77, super), uint16(0))
	f.Add(bytes.Join([][]byte{vxlanOf(77, etherFrame(mac(2), mac(1), nil, 60)), vxlanOf(77, super)}, nil), uint16(82))
	f.Add(vxlanOf(77, super), uint16(700))
	q := dryVXLAN(f)
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		if len(data) > 65507 {
			return
		}
		total := 0
		q.datagrams(func(frames []frame) {
			for i := range frames {
				fr := &frames[i]
				total += len(fr.data)
				if fr.lost != Delivered || fr.parse() != Delivered {
					continue
				}
				var fin offload.Finisher
				if fin.Start(fr.vnet, fr.ether(), offload.Limits{MTU: 1500, Recut: true}) == offload.OK {
					for out := fin.Next(); len(out) > 0; out = fin.Next() {
						_ = out
					}
				}
			}
		}, true, int(size), data)
		if total > len(data)*2+batchSize*vnetLen {
			t.Errorf("%d bytes of %d", total, len(data))
		}
	})
}
