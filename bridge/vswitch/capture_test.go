package vswitch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// startCapture starts a capture and returns its reader.
func startCapture(tb testing.TB, sw *Switch, cfg capture.Config) *capture.Reader {
	tb.Helper()
	r, far, err := capture.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	defer far.Close()
	if err := sw.Capture(far, cfg); err != nil {
		tb.Fatal(err)
	}
	return r
}

// awaitSeen waits until the captures of the switch have seen that many frames in all. A frame is
// captured after it was delivered.
func awaitSeen(tb testing.TB, sw *Switch, want int) {
	tb.Helper()
	nstest.Eventually(tb, 20*time.Second, fmt.Sprintf("%d frames are captured", want), func() bool {
		var seen uint64
		sw.mu.Lock()
		for _, c := range sw.captures {
			for _, v := range c.views {
				seen += v.counts[capture.In].seen.Load() + v.counts[capture.Out].seen.Load()
			}
		}
		sw.mu.Unlock()
		return seen >= uint64(want)
	})
}

// stopCapture stops the capture and reads the rest of it.
func stopCapture(tb testing.TB, r *capture.Reader) (frames []capture.Frame) {
	tb.Helper()
	if err := errors.Join(r.Stop(), r.SetDeadline(time.Now().Add(10*time.Second))); err != nil {
		tb.Fatal(err)
	}
	for {
		f, err := r.Next()
		if err == io.EOF {
			return frames
		}
		if err != nil {
			tb.Fatal(err)
		}
		f.Data = bytes.Clone(f.Data)
		frames = append(frames, f)
	}
}

// told formats a captured frame for comparison.
func told(port int, d capture.Direction, reason string, data []byte) string {
	return fmt.Sprintf("%d %s %q %x", port, d, reason, data)
}

func tellAll(frames []capture.Frame) []string {
	var all []string
	for _, f := range frames {
		all = append(all, told(f.Port, f.Direction, f.Reason, f.Data))
	}
	slices.Sort(all)
	return all
}

func TestCapture(t *testing.T) {
	inVLAN := etherFrame(mac(2), mac(1), tagged("8100:10"), 60)
	without := etherFrame(mac(2), mac(1), nil, 60)
	spoofed := etherFrame(mac(2), mac(9), nil, 60)
	long := etherFrame(mac(3), mac(2), nil, 1400)
	back := etherFrame(mac(1), mac(1), nil, 60)
	cases := map[string]struct {
		cfg  capture.Config
		want []string
	}{
		"both ways": {capture.Config{Ports: []string{"a", "b"}}, []string{
			told(0, capture.In, "", inVLAN), told(1, capture.Out, "", without),
			told(0, capture.In, Spoofed.String(), spoofed),
			told(1, capture.In, "", long), told(0, capture.In, SamePort.String(), back),
		}},
		"in":  {capture.Config{Ports: []string{"b"}, In: true}, []string{told(0, capture.In, "", long)}},
		"out": {capture.Config{Ports: []string{"b", "a"}, Out: true}, []string{told(0, capture.Out, "", without)}},
		"drops": {
			capture.Config{Ports: []string{"c", "a"}, Drops: true},
			[]string{
				told(1, capture.In, Spoofed.String(), spoofed), told(1, capture.In, SamePort.String(), back),
				told(0, capture.Out, TooBig.String(), long),
			},
		},
		"short": {
			capture.Config{Ports: []string{"b"}, Snaplen: 20},
			[]string{told(0, capture.Out, "", without[:20]), told(0, capture.In, "", long[:20])},
		},
	}
	a := trunk(0, 10)
	a.MACs = append(a.MACs, mac(1), mac(4))
	a.Native = 10
	c := access(10)
	c.MTU = 1000
	l := newLAN(t, map[string]vport.Config{"a": a, "b": access(10), "c": c})
	l.send("b", etherFrame(all, mac(2), nil, 46))
	l.send("c", etherFrame(all, mac(3), nil, 46))
	l.send("a", etherFrame(all, mac(1), nil, 46))
	readers := map[string]*capture.Reader{}
	for name, c := range cases {
		readers[name] = startCapture(t, l.sw, c.cfg)
	}
	from := time.Now()
	l.send("a", inVLAN, spoofed, back)
	l.send("b", long)
	want := 0
	for _, c := range cases {
		want += len(c.want)
	}
	awaitSeen(t, l.sw, want)
	for name, c := range cases {
		got := stopCapture(t, readers[name])
		slices.Sort(c.want)
		if !slices.Equal(tellAll(got), c.want) {
			t.Errorf("%s: got %q, want %q", name, tellAll(got), c.want)
		}
		var seen uint64
		for _, n := range readers[name].Totals() {
			seen += n.Seen
			if n.Lost != 0 {
				t.Errorf("%s: %+v", name, n)
			}
		}
		if seen != uint64(len(c.want)) {
			t.Errorf("%s: totals say %d, want %d", name, seen, len(c.want))
		}
		for _, f := range got {
			if want := len(inVLAN); f.Length < want-tagLen || f.Time.Before(from) || f.Time.After(time.Now()) {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
	if n := len(l.sw.captures); n != 0 {
		t.Errorf("%d captures are left", n)
	}
}

// TestCaptureShowsAFrameAsItCame captures frames whose tags the switch changes, for each
// combination of VLANs on the way in and out.
func TestCaptureShowsAFrameAsItCame(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{
		"access": access(10), "native": trunk(10, 20),
		"hairpin": {Settings: brport.Settings{VLAN: 10, Hairpin: true}},
	})
	for _, tags := range [][]string{
		nil, tagged("8100:40960"), tagged("8100:0"), tagged("8100:40970"),
		tagged("8100:40960", "8100:40960"), tagged("8100:99"),
	} {
		for _, from := range []string{"access", "native", "hairpin"} {
			r := startCapture(t, l.sw, capture.Config{Ports: []string{from}, In: true})
			in := etherFrame(all, mac(1), tags, 60)
			l.send(from, in)
			awaitSeen(t, l.sw, 1)
			if got := stopCapture(t, r); len(got) != 1 || !bytes.Equal(got[0].Data, in) {
				t.Errorf("%s, %v: %+v, want %x", from, tags, got, in)
			}
		}
	}
}

// TestCaptureOfOffloads captures a super-frame on its way in, and on its way out whole, with one
// tag less, and segmented.
func TestCaptureOfOffloads(t *testing.T) {
	ports := map[string]vport.Config{"in": trunkAll(0), "tap": trunkAll(0), "vlan": access(10), "socket": trunkAll(0)}
	sw, queues := memoryLAN(t, ports,
		map[string]offload.Limits{"in": everything, "tap": everything, "vlan": everything})
	c := startCapture(t, sw, capture.Config{Ports: []string{"in", "tap", "vlan", "socket"}})
	r := receiverOf(sw, "in")
	in := superFrame(5000, 1000, "8100:10")
	r.frames[0] = frame{data: bytes.Clone(in)}
	r.port.path.Load().input(r, r.frames[:1])
	frames := stopCapture(t, c)
	if len(frames) != 1+1+1+5 {
		t.Fatalf("%d frames", len(frames))
	}
	through := [][][]byte{{in}, queues["tap"].sent, queues["vlan"].sent, queues["socket"].sent}
	for i, b := range through[3] { // this port has no vnet headers
		through[3][i] = append(make([]byte, vnetLen), b...)
	}
	for _, f := range frames {
		header := make([]byte, vnetLen)
		f.Vnet.Put(header)
		want := through[f.Port][0]
		through[f.Port] = through[f.Port][1:]
		if got := append(header, f.Data...); !bytes.Equal(got, want) {
			t.Errorf("at port %d %x was captured, want %x", f.Port, got[:100], want[:100])
		}
	}
}

// TestCaptureCountsWhatItLost uses a reader that does not read.
func TestCaptureCountsWhatItLost(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	r, far, err := capture.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer far.Close()
	if err := unix.SetsockoptInt(int(far.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10); err != nil {
		t.Fatal(err)
	}
	if err := l.sw.Capture(far, capture.Config{Ports: []string{"a", "b"}}); err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	sent := 0
	for range 50 {
		sent += len(l.send("a", slices.Repeat([][]byte{etherFrame(mac(2), mac(1), nil, 1000)}, 20)...)["b"])
	}
	if sent != 1000 {
		t.Errorf("%d of 1000 frames arrived: the capture impedes them", sent)
	}
	awaitSeen(t, l.sw, 2000)
	got := stopCapture(t, r)
	var seen, lost uint64
	for _, n := range r.Totals() {
		seen += n.Seen
		lost += n.Lost
	}
	if len(got) == 0 || lost < 1000 || seen != 2000 || uint64(len(got))+lost != seen {
		t.Errorf("%d read, %d lost, of %d", len(got), lost, seen)
	}
}

func TestCaptureEnds(t *testing.T) {
	end := func(t *testing.T, r *capture.Reader) {
		t.Helper()
		_ = r.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("the capture continues: %v", err)
		}
	}
	captures := func(sw *Switch) int {
		sw.mu.Lock()
		defer sw.mu.Unlock()
		return len(sw.captures)
	}
	for name, how := range map[string]func(t *testing.T, l *lan, r *capture.Reader){
		"the reader leaves": func(t *testing.T, l *lan, r *capture.Reader) { _ = r.Close() },
		"its ports are removed": func(t *testing.T, l *lan, r *capture.Reader) {
			if err := l.sw.RemovePort("a"); err != nil {
				t.Fatal(err)
			}
			if captures(l.sw) != 1 {
				t.Error("the capture ended with its first port")
			}
			if err := l.sw.RemovePort("b"); err != nil {
				t.Fatal(err)
			}
			end(t, r)
		},
		"the switch is closed": func(t *testing.T, l *lan, r *capture.Reader) {
			if err := l.sw.Close(); err != nil {
				t.Error(err)
			}
			end(t, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t, plain("a", "b", "c"))
			r := startCapture(t, l.sw, capture.Config{Ports: []string{"a", "b"}})
			how(t, l, r)
			nstest.Eventually(t, 20*time.Second, "the capture ends", func() bool { return captures(l.sw) == 0 })
			if w := l.sw.table.Load().find("a"); w != nil && len(w.path.Load().views) != 0 {
				t.Error("the port is still captured")
			}
		})
	}
}

func TestCaptureRefusals(t *testing.T) {
	l := newLAN(t, plain("a"))
	for _, c := range []struct {
		cfg  capture.Config
		want error
	}{
		{capture.Config{}, brport.ErrInvalid},
		{capture.Config{Ports: []string{"a", "a"}}, brport.ErrInvalid},
		{capture.Config{Ports: []string{"a"}, Snaplen: -1}, brport.ErrInvalid},
		{capture.Config{Ports: []string{"a", "b"}}, fs.ErrNotExist},
	} {
		_, far, err := capture.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.sw.Capture(far, c.cfg); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.cfg, err, c.want)
		}
		_ = far.Close()
	}
	if err := l.sw.Capture(os.Stdin, capture.Config{Ports: []string{"a"}}); err == nil {
		t.Error("a file that is not a socket was accepted")
	}
	for range maxCaptures {
		startCapture(t, l.sw, capture.Config{Ports: []string{"a"}})
	}
	r, far, err := capture.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	defer r.Close()
	if err := l.sw.Capture(far, capture.Config{Ports: []string{"a"}}); err == nil ||
		!strings.Contains(err.Error(), "already has") {
		t.Errorf("one capture over the limit: %v", err)
	}
	_ = l.sw.Close()
	if err := l.sw.Capture(far, capture.Config{Ports: []string{"a"}}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a closed switch: %v", err)
	}
}

// TestCapturesComeAndGo starts and stops captures while frames pass. Each capture must have all
// frames of its time, or count those that it lost.
func TestCapturesComeAndGo(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	stop := make(chan struct{})
	var traffic, readers sync.WaitGroup
	traffic.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = unix.Write(l.stations["a"].fd, etherFrame(mac(2), mac(1), nil, 100))
			_, _ = unix.Write(l.stations["c"].fd, etherFrame(mac(2), mac(3), nil, 100))
			for range 2 {
				_, _ = unix.Read(l.stations["b"].fd, buf)
			}
		}
	})
	for range 3 {
		readers.Go(func() {
			for range 30 {
				r := startCapture(t, l.sw, capture.Config{Ports: []string{"b", "a"}})
				for range 20 {
					if _, err := r.Next(); err != nil {
						t.Error(err)
						return
					}
				}
				n := uint64(20 + len(stopCapture(t, r)))
				for _, total := range r.Totals() {
					n -= total.Seen - total.Lost
				}
				if n != 0 {
					t.Errorf("the totals are off by %d frames: %+v", int64(n), r.Totals())
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	traffic.Wait()
}
