package pcapng

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// Frames in hexadecimal, after the two addresses.
const (
	arpRequest = "0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002"
	arpReply   = "0806 0001 0800 06 04 0002 020000000002 0a000002 020000000001 0a000001"
	syn        = "0800 4500002c 00004000 40060000 0a000001 0a000002 d431 0050 00000007 00000000 6002 ffff 0000 0000 020405b4"
	dns        = "0800 45000020 00004000 40110000 0a000001 0a000002 d431 0035 000c 0000 01020304"
	echo4      = "0800 4500001c 00004000 40010000 0a000001 0a000002 0800 0000 0001 0001"
	echo6      = "86dd 60000000 0008 3a 40 fd000000000000000000000000000001 fd000000000000000000000000000002 8000 0000 0001 0001"
	syn6       = "86dd 60000000 0014 06 40 fd000000000000000000000000000001 fd000000000000000000000000000002 d431 0050 00000007 00000001 5010 ffff 0000 0000"
	later      = "0800 4500001c 0000 0001 40110000 0a000001 0a000002 0000 0000 0001 0001"
)

func frame(text string) capture.Frame {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for text := strings.ReplaceAll(text, " ", ""); len(text) >= 2; text = text[2:] {
		var x byte
		if _, err := fmt.Sscanf(text[:2], "%02x", &x); err != nil {
			panic(err)
		}
		b = append(b, x)
	}
	return capture.Frame{Data: b, Length: len(b)}
}

func TestSummary(t *testing.T) {
	super := frame(syn)
	super.Vnet = offload.Header{Flags: offload.NeedsCsum, GSOType: offload.GSOTCPv4, GSOSize: 1448}
	partial := frame(dns)
	partial.Vnet.Flags = offload.NeedsCsum
	dropped := frame(arpRequest)
	dropped.Reason = "queue full"
	cut := frame(syn)
	cut.Data = cut.Data[:30]
	long := frame(
		"0800 4500fe88 00004000 40060000 0a000001 0a000002 d431 0050 00000007 00000000 5010 ffff 0000 0000 01")
	long.Length = 65174
	for _, c := range []struct {
		frame capture.Frame
		want  string
	}{
		{frame(arpRequest), "ARP who has 10.0.0.2, tell 10.0.0.1, length 42"},
		{frame(arpReply), "ARP 10.0.0.2 is at 02:00:00:00:00:02, length 42"},
		{frame("8100 000a " + arpRequest), "VLAN 10, ARP who has 10.0.0.2, tell 10.0.0.1, length 46"},
		{
			frame("88a8 0007 8100 600a " + dns),
			"VLAN 7, VLAN 10, IPv4 10.0.0.1:54321 > 10.0.0.2:53 UDP, 4 bytes, length 54",
		},
		{frame(syn), "IPv4 10.0.0.1:54321 > 10.0.0.2:80 TCP [S] seq 7 ack 0, 0 bytes, length 58"},
		{frame(syn6), "IPv6 [fd00::1]:54321 > [fd00::2]:80 TCP [.] seq 7 ack 1, 0 bytes, length 74"},
		{frame(echo4), "IPv4 10.0.0.1 > 10.0.0.2 ICMP EchoRequest, length 42"},
		{frame(echo6), "IPv6 fd00::1 > fd00::2 ICMPv6 EchoRequest, length 62"},
		{frame(later), "IPv4 10.0.0.1 > 10.0.0.2 fragment, length 42"},
		{
			frame("0800 4500001c 00004000 402f0000 0a000001 0a000002 0000 0800 0000 0000"),
			"IPv4 10.0.0.1 > 10.0.0.2 protocol 47, length 42",
		},
		{frame("88b5 0102"), "type 0x88b5, length 16"},
		{frame("0026 4242 03"), "802.3 of 38 bytes, length 17"},
		{super, "IPv4 10.0.0.1:54321 > 10.0.0.2:80 TCP [S] seq 7 ack 0, 0 bytes, length 58, segments of 1448"},
		{partial, "IPv4 10.0.0.1:54321 > 10.0.0.2:53 UDP, 4 bytes, length 46, checksum to fill in"},
		{dropped, "ARP who has 10.0.0.2, tell 10.0.0.1, length 42, dropped: queue full"},
		{long, "IPv4 10.0.0.1:54321 > 10.0.0.2:80 TCP [.] seq 7 ack 0, 65120 bytes, length 65174"},
		{cut, "type 0x0800, length 58"},
	} {
		if got, want := Summary(c.frame), "02:00:00:00:00:01 > 02:00:00:00:00:02, "+c.want; got != want {
			t.Errorf("%x:\n got %s\nwant %s", c.frame.Data, got, want)
		}
	}
	if got := Summary(capture.Frame{Reason: "too long"}); got !=
		"no Ethernet header, nothing more, length 0, dropped: too long" {
		t.Errorf("without a frame: %s", got)
	}
}

// FuzzSummary summarises arbitrary frames of guests. The result must be one line of printable
// characters.
func FuzzSummary(f *testing.F) {
	for _, text := range []string{
		arpRequest, syn, dns, echo4, echo6, syn6, later, "8100 000a " + syn, "0026 4242 03",
		"8847 00000140 45",
	} {
		f.Add(frame(text).Data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		line := Summary(capture.Frame{Data: b, Length: len(b)})
		if len(line) > 1000 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%x: %q", b, line)
		}
	})
}

func TestOrder(t *testing.T) {
	var o Order
	now := time.Now()
	push := func(at time.Duration, length int) {
		o.Push(capture.Frame{Time: now.Add(at), Length: length})
	}
	pop := func(at time.Duration) (got []int) {
		for f, ok := o.Pop(now.Add(at)); ok; f, ok = o.Pop(now.Add(at)) {
			got = append(got, f.Length)
		}
		return got
	}
	push(2, 3)
	push(0, 1)
	push(time.Second, 5)
	push(0, 2)
	push(3, 4)
	if got := fmt.Sprint(pop(0)); got != "[]" {
		t.Errorf("the order does not wait for earlier frames: %s", got)
	}
	if got := fmt.Sprint(pop(Patience + 10)); got != "[1 2 3 4]" {
		t.Errorf("order %s", got)
	}
	if f, ok := o.Rest(); !ok || f.Length != 5 {
		t.Errorf("the rest: %+v", f)
	}
	if f, ok := o.Rest(); ok {
		t.Errorf("a frame too many: %+v", f)
	}
	for i := range maxFrames + 10 {
		push(time.Hour, i)
	}
	if got := pop(0); len(got) != 10 || got[9] != 9 {
		t.Errorf("%d frames wait, %v do not", len(o.waiting), got)
	}
	o = Order{}
	for range 2000 {
		o.Push(capture.Frame{Time: now.Add(time.Hour), Data: make([]byte, 64<<10)})
	}
	if got := len(pop(0)); got != 2000-maxBytes/(64<<10) {
		t.Errorf("%d frames of 64 KiB do not wait", got)
	}
}

// TestFile writes frames and reads them back, byte by byte.
func TestFile(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	for _, c := range []struct {
		cfg   capture.Config
		names []string // of interfaces that frames passed
		faces int
	}{
		{
			capture.Config{Ports: []string{"tap0", "eth\x1b0"}, Snaplen: 30},
			[]string{"tap0 in", "eth\ufffd0 out", "tap0 in"},
			4,
		},
		{capture.Config{Ports: []string{"tap0", "b"}, In: true}, []string{"tap0 in", "", "tap0 in"}, 2},
		{
			capture.Config{Ports: []string{"a", "b"}, Drops: true},
			[]string{"a in", "b out", "a in, dropped: queue full"},
			5,
		},
	} {
		var b bytes.Buffer
		f, err := NewFile(&b, "vmnet 1", "sw0", c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		frames := []capture.Frame{frame(arpRequest), frame(syn), frame(dns)}
		frames[1].Port, frames[1].Direction = 1, capture.Out
		frames[2].Reason = "queue full"
		var want []capture.Frame
		for i, cf := range frames {
			cf.Time = at.Add(time.Duration(i))
			if c.names[i] == "" {
				continue
			}
			if c.cfg.Snaplen > 0 {
				cf.Data = cf.Data[:c.cfg.Snaplen]
			}
			want = append(want, cf)
			if err := f.Write(cf); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Finish([]capture.Totals{{Port: 0, Direction: capture.In, Seen: 9, Lost: 7}}); err != nil {
			t.Fatal(err)
		}
		r, err := pcapgo.NewNgReader(&b, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for i, w := range want {
			data, ci, err := r.ReadPacketData()
			if err != nil {
				t.Fatal(err)
			}
			face, err := r.Interface(ci.InterfaceIndex)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, face.Name)
			if !bytes.Equal(data, w.Data) || ci.Length != w.Length || !ci.Timestamp.Equal(w.Time) ||
				face.LinkType != layers.LinkTypeEthernet || face.SnapLength != uint32(c.cfg.Snaplen) {
				t.Errorf("frame %d: %x, %+v, %+v, want %+v", i, data, ci, face, w)
			}
		}
		if _, _, err := r.ReadPacketData(); err != io.EOF {
			t.Errorf("after the last frame: %v", err)
		}
		var wantNames []string
		for _, n := range c.names {
			if n != "" {
				wantNames = append(wantNames, n)
			}
		}
		if fmt.Sprint(names) != fmt.Sprint(wantNames) || r.NInterfaces() != c.faces {
			t.Errorf("interfaces %q of %d, want %q of %d", names, r.NInterfaces(), wantNames, c.faces)
		}
		first, err := r.Interface(0)
		if err != nil || first.Statistics.PacketsDropped != 7 {
			t.Errorf("statistics %+v, %v", first.Statistics, err)
		}
		if info := r.SectionInfo(); info.Application != "vmnet 1" || !strings.Contains(info.Comment, "sw0") {
			t.Errorf("section %+v", info)
		}
	}
}

// broken accepts n bytes and then fails.
type broken struct{ n int }

var errDisk = errors.New("the disk is full")

func (b *broken) Write(p []byte) (int, error) {
	if b.n -= len(p); b.n < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestFileThatCannotBeWritten(t *testing.T) {
	f, err := NewFile(&broken{10000}, "vmnet", "sw0", capture.Config{Ports: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil && i < 1000; i++ {
		err = f.Write(frame(arpRequest))
	}
	if !errors.Is(err, errDisk) {
		t.Errorf("%v", err)
	}
	if err := f.Write(capture.Frame{Port: 1}); err == nil {
		t.Error("a frame of a port that is not captured was written")
	}
}
