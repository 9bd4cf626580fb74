package vswitch

import (
	"bytes"
	"encoding/binary"
	"maps"
	"reflect"
	"testing"

	"vmnet/bridge/portsec/portsectest"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/vhostuser"
)

// An inPlace is a switch of memories, whose ports take frames whole, or as a guest's ring has them:
// a head, and the rest in pieces.
type inPlace struct {
	tb     testing.TB
	sw     *Switch
	queues map[string]*memory
}

func newInPlace(tb testing.TB) *inPlace {
	security := portsectest.Config()
	security.MAC = mac(1)
	sw, queues := memoryLAN(tb, map[string]vport.Config{
		"in": trunkAll(1), "secure": {Security: security}, "tap": {}, "vlan": access(10), "guest": {}, "trunk": trunkAll(0),
		"socket": trunkAll(1), "small": {MTU: 1000}, "tunnels": trunkAll(1), "copied": {},
	}, map[string]offload.Limits{
		"in": everything, "secure": everything, "tap": everything, "vlan": everything, "guest": everything, "trunk": everything,
		"small": everything, "tunnels": everyTunnel, "copied": everything,
	})
	for _, p := range sw.Ports() {
		p.wire.pieces = p.name != "copied"
	}
	if err := sw.fdb.AddStatic(KeyOf(mac(2), defaultVLAN), sw.table.Load().find("guest").index); err != nil {
		tb.Fatal(err)
	}
	return &inPlace{tb, sw, queues}
}

// receiver makes a receiver of a port, as if it were a guest's.
func (l *inPlace) receiver(from string) *receiver {
	l.tb.Helper()
	dev, err := vhostuser.New(1, nil)
	if err != nil {
		l.tb.Fatal(err)
	}
	r := receiverOf(l.sw, from)
	r.guest = &vhostQueue{pair: dev.Pair(0)}
	r.out.guests.From = r.guest.pair
	return r
}

// split returns a frame with what follows its head in pieces of that length; 0 leaves it whole.
func split(data []byte, piece int) frame {
	data = bytes.Clone(data)
	f := frame{data: data}
	if piece == 0 || len(data) <= vhostuser.HeadLen {
		return f
	}
	f.data, f.more = data[:vhostuser.HeadLen:vhostuser.HeadLen], len(data)-vhostuser.HeadLen
	for rest := data[vhostuser.HeadLen:]; len(rest) > 0; {
		n := min(len(rest), piece)
		f.rest, rest = append(f.rest, rest[:n:n]), rest[n:]
	}
	return f
}

// outcome is what has become of a frame, by ports.
type outcome struct {
	Sent  map[string][][]byte
	Drops map[string]map[string]uint64
}

// pass passes a frame from a port.
func (l *inPlace) pass(from string, f frame) outcome {
	l.tb.Helper()
	r := l.receiver(from)
	r.frames[0] = f
	r.input(r.frames[:1])
	o := outcome{map[string][][]byte{}, map[string]map[string]uint64{}}
	for name, q := range l.queues {
		o.Sent[name], q.sent = q.sent, nil
		p := l.sw.table.Load().find(name)
		o.Drops[name] = maps.Clone(p.Stats().Drops)
		for why := range p.drops {
			p.drops[why].Store(0)
		}
	}
	return o
}

// manyExtensions returns a frame over IPv6 whose headers are longer than the head, and end in a
// router advertisement.
func manyExtensions(options int) []byte {
	f := append(make([]byte, vnetLen), etherFrame(all, mac(1), nil, 40+8*(options+1)+300)...)
	ip := f[vnetLen+etherLen:]
	clear(ip)
	binary.BigEndian.PutUint16(f[vnetLen+macsLen:], 0x86dd)
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
	ip[0], ip[6], ip[7], ip[40], ip[41] = 0x60, 60, 255, 58, byte(options)
	ip[40+8*(options+1)] = 134
	return f
}

// FuzzInPlace passes any frame whole and in place. The same leaves, by the same ports, and the same
// is counted.
func FuzzInPlace(f *testing.F) {
	for i, data := range [][]byte{
		nil, superFrame(5000, 1448), superFrame(60000, 1448, "8100:10"), superFrame(5000, 1448, "88a8:1", "8100:10"),
		superFrame(900, 0), superFrame(1400, 0, "8100:5"), vxlanFrame(false), vxlanFrame(true), manyExtensions(0),
		manyExtensions(20), manyExtensions(40), append(make([]byte, vnetLen), etherFrame(all, mac(1), nil, 1400)...),
		append(make([]byte, vnetLen), etherFrame(mac(2), mac(1), nil, 9000)...),
	} {
		f.Add(data, uint16(1<<i))
	}
	for _, c := range portsectest.Table() {
		f.Add(append(append(make([]byte, vnetLen), c.Frame...), make([]byte, 300)...), uint16(1000))
	}
	l := newInPlace(f)
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		if len(data) > vnetLen+offload.MaxFrame {
			return
		}
		l.tb = t
		for _, from := range []string{"in", "secure"} {
			whole := l.pass(from, split(data, 0))
			pieces := l.pass(from, split(data, max(1, int(piece), len(data)/20)))
			if !reflect.DeepEqual(whole, pieces) {
				t.Errorf("from %s, in pieces of %d bytes: %+v\nwhole: %+v", from, piece, pieces.Drops, whole.Drops)
			}
		}
	})
}

// TestDeepHeadersAreChecked: what port security forbids does not pass behind headers that are not
// all in the head.
func TestDeepHeadersAreChecked(t *testing.T) {
	l := newInPlace(t)
	for _, options := range []int{0, 10, 28, 60, 250} {
		o := l.pass("secure", split(manyExtensions(options), 700))
		if len(o.Drops["secure"]) != 1 {
			t.Errorf("%d bytes of options: %+v", 8*options, o.Drops)
		}
		for name, sent := range o.Sent {
			if len(sent) != 0 {
				t.Errorf("%d bytes of options: it leaves by %s", 8*options, name)
			}
		}
	}
}

// TestCaptureInPlace captures a frame in place on its way in and out, whole and its start.
func TestCaptureInPlace(t *testing.T) {
	for _, snaplen := range []int{0, 100, 300, 1000} {
		l := newInPlace(t)
		c := startCapture(t, l.sw, capture.Config{Ports: []string{"in", "guest", "tap", "small"}, Snaplen: snaplen})
		r, want := l.receiver("in"), superFrame(5000, 900)
		copy(want[vnetLen:], mac(77))
		r.frames[0] = split(want, 2000)
		r.port.path.Load().input(r, r.frames[:1])
		want = want[vnetLen:]
		captured := stopCapture(t, c)
		if len(captured) < 4 {
			t.Fatalf("%d frames were captured", len(captured))
		}
		for _, f := range captured {
			if f.Port == 3 {
				continue // which gets it in segments
			}
			n := len(want)
			if snaplen != 0 {
				n = snaplen
			}
			if !bytes.Equal(f.Data, want[:n]) || f.Length != len(want) {
				t.Errorf("snaplen %d, port %d: %d of %d bytes were captured", snaplen, f.Port, len(f.Data), f.Length)
			}
		}
	}
}
