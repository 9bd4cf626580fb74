package vhostuser

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// within bounds what takes milliseconds on an idle machine.
const within = 20 * time.Second

// A bench has a device, with a goroutine that receives from each of its pairs.
type bench struct {
	t      testing.TB
	dev    *Device
	got    chan []byte // frames from the guest, with their vnet headers
	states chan struct{}
	ended  chan error // of a session
}

func newBench(t testing.TB, pairs int) *bench {
	t.Helper()
	b := &bench{t: t, got: make(chan []byte, 4096), states: make(chan struct{}, 64), ended: make(chan error, 1)}
	var err error
	if b.dev, err = New(pairs, func() {
		select {
		case b.states <- struct{}{}:
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, pairs)
	for n := range pairs {
		go func() {
			defer func() { done <- struct{}{} }()
			p, s, frames := b.dev.Pair(n), Sender{}, make([]Received, 64)
			for {
				n, err := p.Receive(frames)
				if err != nil {
					return
				}
				for i := range n {
					if p.Whole(&frames[i]) {
						b.got <- slices.Clone(frames[i].Head)
					}
				}
				p.Done(&s)
			}
		}()
	}
	t.Cleanup(func() {
		_ = b.dev.Close()
		for range pairs {
			<-done
		}
	})
	return b
}

// serve begins a session and returns the frontend's end.
func (b *bench) serve() *net.UnixConn {
	b.t.Helper()
	near, far := connected(b.t)
	go func() { b.ended <- b.dev.Serve(near) }()
	return far
}

func connected(t testing.TB) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// guest makes a frontend whose device is ready.
func (b *bench) guest(cfg frontend.Config) *frontend.Frontend {
	b.t.Helper()
	f, err := frontend.New(b.serve(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.ready(true)
	return f
}

func (b *bench) ready(want bool) {
	b.t.Helper()
	nstest.Eventually(b.t, within, "the device is ready or not", func() bool { return b.dev.State().Ready == want })
}

// hangup closes the frontend and waits until the session has ended, and returns its error.
func (b *bench) hangup(f *frontend.Frontend) error {
	b.t.Helper()
	if err := f.Close(); err != nil {
		b.t.Fatal(err)
	}
	return b.end()
}

func (b *bench) end() error {
	b.t.Helper()
	select {
	case err := <-b.ended:
		return err
	case <-time.After(within):
		b.t.Fatal("the session does not end")
	}
	return nil
}

// receive returns the next frame from the guest.
func (b *bench) receive() []byte {
	b.t.Helper()
	select {
	case f := <-b.got:
		return f
	case <-time.After(within):
		b.t.Fatal("no frame from the guest")
	}
	return nil
}

// send sends a frame with a vnet header to the guest, once it has room.
func (b *bench) send(s *Sender, pair int, head, ether []byte) Result {
	b.t.Helper()
	result := []Result{Full}
	nstest.Eventually(b.t, within, "the guest has room", func() bool {
		h := append(slices.Clone(head), make([]byte, offload.HeaderLen-len(head))...)
		b.dev.Pair(pair).Send(s, []offload.Frame{{Head: h, Payload: ether}}, result)
		return result[0] != Full
	})
	return result[0]
}

// ether returns a frame of n bytes, which tells frames apart.
func ether(n, seed int) []byte {
	f := make([]byte, n)
	for i := range f {
		f[i] = byte(i*7 + seed)
	}
	return f
}

// sizes are lengths of frames in bytes: the shortest, ordinary ones, and super-frames.
var sizes = []int{14, 60, 1514, 2034, 2036, 9014, 65550}

func TestFramesBothWays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  frontend.Config
	}{
		{"all features", frontend.Config{}},
		{"no event index", frontend.Config{Without: frontend.EventIndex}},
		{"no mergeable buffers", frontend.Config{Without: frontend.Mergeable, Buffer: 66 << 10}},
		{"no protocol features", frontend.Config{Bare: true}},
		{"old header", frontend.Config{Without: frontend.Mergeable | frontend.Version1, Buffer: 66 << 10}},
		{"chains", frontend.Config{Pieces: 19, Ring: 1024}},
		{"indirect", frontend.Config{Pieces: 40, Indirect: true}},
		{"small ring", frontend.Config{Ring: 64, Without: frontend.EventIndex}},
		{"two pairs", frontend.Config{Pairs: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 2)
			f := b.guest(tt.cfg)
			header := frontend.Header
			if tt.cfg.Without&frontend.Version1 != 0 {
				header = offload.HeaderLen
			}
			var s Sender
			for round := range 40 {
				for i, n := range sizes {
					b.bothWays(f, &s, header, round%f.Pairs, ether(n, round+i))
				}
			}
			if err := b.hangup(f); err != nil {
				t.Error(err)
			}
		})
	}
}

// bothWays passes a frame from the guest and one to it.
func (b *bench) bothWays(f *frontend.Frontend, s *Sender, header, pair int, frame []byte) {
	b.t.Helper()
	p := f.Pair[pair]
	head := make([]byte, header)
	head[0] = offload.NeedsCsum | offload.DataValid
	nstest.Eventually(b.t, within, "the ring has room", func() bool { return p.Send(append(head, frame...)) == 1 })
	got := b.receive()
	if got[0] != offload.NeedsCsum || !bytes.Equal(got[offload.HeaderLen:], frame) {
		b.t.Fatalf("a frame of %d bytes arrived as %d bytes, flags %#x", len(frame), len(got)-offload.HeaderLen, got[0])
	}
	if r := b.send(s, pair, []byte{offload.NeedsCsum}, frame); r != Sent {
		b.t.Fatalf("a frame of %d bytes: result %d", len(frame), r)
	}
	got, ok := p.Await(within)
	if !ok || got[0] != offload.NeedsCsum || !bytes.Equal(got[header:], frame) {
		b.t.Fatalf("the guest got %d bytes for a frame of %d", len(got), len(frame))
	}
	if header == frontend.Header {
		want := (len(frame) + header + f.Buffer - 1) / f.Buffer
		if n := int(binary.LittleEndian.Uint16(got[10:])); n != want {
			b.t.Fatalf("num_buffers is %d: want %d", n, want)
		}
	}
}
