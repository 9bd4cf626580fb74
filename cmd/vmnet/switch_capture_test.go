package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/endpoint"
)

// aSwitch is a switch that runs in this process, with guests a and b on datagram sockets. Guest a
// may send only from stationMAC(1).
type aSwitch struct {
	t    *testing.T
	path string
	a, b *os.File
	stop func()
}

func switchHere(t *testing.T) *aSwitch {
	t.Helper()
	s := &aSwitch{t: t, path: filepath.Join(t.TempDir(), "sw")}
	l, err := server.Listen(s.path)
	if err != nil {
		t.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{})
	server := server.New(sw, control.Info{Name: "sw"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, sw.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	t.Cleanup(s.stop)
	for name, end := range map[string]**os.File{"a": &s.a, "b": &s.b} {
		near, far, err := endpoint.SocketFiles()
		if err != nil {
			t.Fatal(err)
		}
		p := control.Port{Name: name, Kind: control.Socket}
		if name == "a" {
			p.Config.MACs = append(p.Config.MACs, stationMAC(1))
		}
		if err := server.AddPort(p, near); err != nil {
			t.Fatal(err)
		}
		_ = near.Close()
		t.Cleanup(func() { _ = far.Close() })
		*end = far
	}
	return s
}

func stationMAC(n byte) []byte { return []byte{2, 0, 0, 0, 0, n} }

// frameTo returns a frame from station src; src is the last byte of the station's address.
func frameTo(dst []byte, src, number byte) []byte {
	f := slices.Concat(dst, stationMAC(src), []byte{0x88, 0xb5}, make([]byte, 286))
	f[len(f)-1] = number
	return f
}

// send writes frames until the capture has ended: its beginning is not reported.
func (s *aSwitch) send(from *os.File, done <-chan struct{}, frames ...[]byte) {
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
			_, _ = unix.Write(int(from.Fd()), frames[i%len(frames)])
		}
	}
}

// capture runs the verb while do does.
func (s *aSwitch) capture(ctx context.Context, do func(done <-chan struct{}),
	args ...string,
) (status int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		status = run(ctx, append([]string{"switch", "capture", s.path}, args...), strings.NewReader(""), &out, &errs)
	}()
	do(done)
	select {
	case <-done:
	case <-time.After(patience):
		s.t.Fatalf("capture %v does not end", args)
	}
	return status, out.String(), errs.String()
}

// readBack returns the frames in a file, by the names of their interfaces.
func readBack(t *testing.T, r io.Reader) (names []string, frames [][]byte, lengths []int) {
	t.Helper()
	ng, err := pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for {
		data, ci, err := ng.ReadPacketData()
		if err == io.EOF {
			return names, frames, lengths
		}
		if err != nil {
			t.Fatal(err)
		}
		face, err := ng.Interface(ci.InterfaceIndex)
		if err != nil || ci.Timestamp.Before(last) || time.Since(ci.Timestamp) > time.Minute {
			t.Errorf("a frame at %v behind one at %v: %v", ci.Timestamp, last, err)
		}
		last = ci.Timestamp
		names, frames, lengths = append(names, face.Name), append(frames, data), append(lengths, ci.Length)
	}
}

// TestSwitchCaptureFile compares the written frames with the sent ones, byte by byte: each frame
// enters by a and leaves by b.
func TestSwitchCaptureFile(t *testing.T) {
	s := switchHere(t)
	all := bytes.Repeat([]byte{0xff}, 6)
	one, two := frameTo(all, 1, 1), frameTo(all, 1, 2)
	for _, c := range []struct {
		args    []string
		snaplen int
		in, out string
	}{
		{[]string{"--count", "20"}, 300, "a in", "b out"},
		{[]string{"--count", "7", "--port", "a", "--snaplen", "64"}, 64, "a in", ""},
		{[]string{"--count", "7", "--direction", "out", "--port", "b", "--port", "a"}, 300, "", "b out"},
	} {
		for _, file := range []string{filepath.Join(t.TempDir(), "x.pcapng"), "-"} {
			status, stdout, stderr := s.capture(t.Context(), func(done <-chan struct{}) {
				s.send(s.a, done, one, two)
			}, append(c.args, "-w", file)...)
			if status != 0 || stderr != "vmnet: "+c.args[1]+" frames captured, 0 lost\n" {
				t.Errorf("%v: %d, %s", c.args, status, stderr)
			}
			content := io.Reader(strings.NewReader(stdout))
			if file != "-" {
				b, err := os.ReadFile(file)
				if err != nil || stdout != "" {
					t.Fatalf("%v, %s", err, stdout)
				}
				if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
					t.Errorf("%v, %v", st.Mode(), err)
				}
				content = bytes.NewReader(b)
			}
			names, frames, lengths := readBack(t, content)
			var cameIn [][]byte
			for i, f := range frames {
				if names[i] != c.in && names[i] != c.out || lengths[i] != len(one) || len(f) != c.snaplen {
					t.Errorf("%v: frame %d of %s has %d of %d bytes", c.args, i, names[i], len(f), lengths[i])
				}
				if !bytes.Equal(f, one[:c.snaplen]) && !bytes.Equal(f, two[:c.snaplen]) {
					t.Errorf("%v: frame %d is %x", c.args, i, f)
				}
				// A frame that leaves has entered before.
				if names[i] == "a in" {
					cameIn = append(cameIn, f)
				} else if c.in != "" && (i > 0 || len(cameIn) > 0) { // the capture may have begun in between
					if len(cameIn) == 0 || !bytes.Equal(cameIn[0], f) {
						t.Fatalf("%v: frame %d, %x goes out, %x came in", c.args, i, f, cameIn)
					}
					cameIn = cameIn[1:]
				}
			}
			if want := c.args[1]; len(frames) != map[string]int{"20": 20, "7": 7}[want] {
				t.Errorf("%v: %d frames", c.args, len(frames))
			}
		}
	}
}

func TestSwitchCaptureLines(t *testing.T) {
	s := switchHere(t)
	all := bytes.Repeat([]byte{0xff}, 6)
	right, spoofed := frameTo(all, 1, 1), frameTo(all, 9, 1)
	traffic := func(done <-chan struct{}) { s.send(s.a, done, right, spoofed) }
	for _, c := range []struct {
		args []string
		want string // in each line
	}{
		{[]string{"--direction", "out"}, " b out 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, type 0x88b5, length 300"},
		{
			[]string{"--drops"},
			" a in  02:00:00:00:00:09 > ff:ff:ff:ff:ff:ff, type 0x88b5, length 300, dropped: source address not allowed",
		},
		{
			[]string{"--drops", "-o", "json"},
			`"port":"a","direction":"in","queue":0,"length":300,"summary":"02:00:00:00:00:09 \u003e ff:ff:ff:ff:ff:ff, type 0x88b5, length 300, dropped: source address not allowed","dropped":"source address not allowed"}`,
		},
	} {
		status, stdout, stderr := s.capture(t.Context(), traffic, append(c.args, "--count", "3")...)
		summary := "vmnet: 3 frames captured, 0 lost\n"
		if slices.Contains(c.args, "json") {
			summary = `{"progress":"3 frames captured, 0 lost"}` + "\n"
		}
		if status != 0 || stderr != summary || strings.Count(stdout, c.want+"\n") != 3 ||
			strings.Count(stdout, "\n") != 3 {
			t.Errorf("%v: %d, %s%s", c.args, status, stdout, stderr)
		}
	}
}

// TestSwitchCaptureEnds ends a capture by its duration, by a signal, and with the switch.
func TestSwitchCaptureEnds(t *testing.T) {
	s := switchHere(t)
	broadcast := frameTo(bytes.Repeat([]byte{0xff}, 6), 1, 1)
	file := filepath.Join(t.TempDir(), "x.pcapng")
	traffic := func(done <-chan struct{}) { s.send(s.a, done, broadcast) }
	status, _, stderr := s.capture(t.Context(), traffic, "--duration", "300ms", "-w", file)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, frames, _ := readBack(t, bytes.NewReader(content)); status != 0 || len(frames) < 10 ||
		!strings.Contains(stderr, "frames captured, 0 lost") {
		t.Errorf("%d, %d frames, %s", status, len(frames), stderr)
	}
	status, _, stderr = s.capture(t.Context(), traffic, "--duration", "300ms", "-w", file)
	if after, _ := os.ReadFile(file); status != 1 || !bytes.Equal(after, content) ||
		!strings.Contains(stderr, "file exists (remove it, or name another file)") {
		t.Errorf("a file that exists: %d, %s", status, stderr)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	status, _, stderr = s.capture(ctx, func(done <-chan struct{}) {
		time.AfterFunc(200*time.Millisecond, interrupt)
		traffic(done)
	})
	if status != 0 || !strings.Contains(stderr, "frames captured, 0 lost") {
		t.Errorf("interrupted: %d, %s", status, stderr)
	}
	status, stdout, stderr := s.capture(t.Context(), func(done <-chan struct{}) {
		time.AfterFunc(200*time.Millisecond, s.stop)
		traffic(done)
	})
	if status != 1 || !strings.Contains(stderr, "the switch ended the capture") ||
		!strings.Contains(stdout, "type 0x88b5") {
		t.Errorf("the switch ended: %d, %s", status, stderr)
	}
}

func TestSwitchCaptureNotToATerminal(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var errs bytes.Buffer
	if status := run(t.Context(), []string{"switch", "capture", "sw0", "-w", "-"}, strings.NewReader(""), tty,
		&errs); status != 2 || !strings.Contains(errs.String(), "stdout is a terminal") {
		t.Errorf("%d, %s", status, errs.String())
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(&errs) {
		t.Error("what is no terminal was taken for one")
	}
}
