package vswitch

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/nstest"
)

// ringSender returns a sender with a ring, if the kernel permits one.
func ringSender(t *testing.T) *sender {
	t.Helper()
	s := newSender()
	t.Cleanup(s.close)
	ok := s.hasRing()
	nstest.Require(t, "io_uring", ok, "sysctl kernel.io_uring_disabled=0, and no seccomp filter against it")
	return s
}

// pair returns a datagram socketpair, which keeps frames apart as a tap does.
func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func TestRingWritesInOrder(t *testing.T) {
	s, n := ringSender(t), 0
	a, b := pair(t)
	for turn := range 40 { // so that the ring wraps around
		s.begin(0)
		var want [][]byte
		for i := range 1 + turn*7%batchSize {
			f := offload.Frame{Head: []byte{1, byte(n), byte(n >> 8)}}
			if i%3 == 0 {
				f.Payload = bytes.Repeat([]byte{byte(n)}, 1+n%1500)
			}
			s.add(f)
			want = append(want, append(bytes.Clone(f.Head), f.Payload...))
			n++
		}
		if err := s.ring.write(uintptr(a), s); err != nil {
			t.Fatal(err)
		}
		if int(s.frames) != s.n || s.failed {
			t.Fatalf("turn %d: %d of %d frames, drops %v", turn, s.frames, s.n, s.drops)
		}
		s.n = 0
		buf := make([]byte, 4096)
		for i, w := range want {
			got, err := unix.Read(b, buf)
			if err != nil || !bytes.Equal(buf[:got], w) {
				t.Fatalf("turn %d, frame %d: %x, %v; want %x", turn, i, buf[:max(0, got)], err, w)
			}
		}
	}
}

// TestRingReportsEachFrame sends to a socket that has room for some frames only, and is then
// closed.
func TestRingReportsEachFrame(t *testing.T) {
	s := ringSender(t)
	a, _ := pair(t)
	if err := unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_SNDBUF, 20000); err != nil {
		t.Fatal(err)
	}
	fill := func() {
		s.n = 0
		s.begin(0)
		for range batchSize {
			s.add(offload.Frame{Head: make([]byte, 4000)})
		}
		if err := s.ring.write(uintptr(a), s); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	if s.frames == 0 || s.drops[Full] == 0 || s.frames+uint64(s.drops[Full]) != batchSize {
		t.Errorf("%d frames, drops %v", s.frames, s.drops)
	}
	if got := s.reasons[batchSize-1]; got != Full {
		t.Errorf("the last frame is %v", got)
	}
	if err := unix.Shutdown(a, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	fill()
	if s.drops[Gone] != batchSize || s.gone != unix.EPIPE {
		t.Errorf("drops %v, gone by %v", s.drops, s.gone)
	}
}

func TestSenderWithoutARing(t *testing.T) {
	s := newSender()
	s.close()
	a, b := pair(t)
	s.begin(0)
	for i := range byte(ringFrom + 1) {
		s.add(offload.Frame{Head: []byte{i}})
	}
	s.writeEach(uintptr(a))
	buf := make([]byte, 10)
	for i := range byte(ringFrom + 1) {
		if n, err := unix.Read(b, buf); n != 1 || err != nil || buf[0] != i {
			t.Fatalf("frame %d: %x, %v", i, buf[:max(0, n)], err)
		}
	}
	if s.ring != nil || s.frames != ringFrom+1 {
		t.Errorf("ring %v, %d frames", s.ring, s.frames)
	}
}

// TestSenderWithoutNonblockingRing writes to a file of proc(5), which supports no writes that do
// not wait, like a tap before Linux 5.11. No frame may be lost.
func TestSenderWithoutNonblockingRing(t *testing.T) {
	s := ringSender(t)
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.WriteFile("/proc/self/comm", bytes.TrimSpace(name), 0o600) }()
	f, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 2 * ringFrom {
		s.add(offload.Frame{Head: fmt.Appendf(nil, "frame %d", i)})
	}
	s.begin(0)
	s.writeEach(f.Fd())
	if int(s.frames) != s.n || s.failed || s.ring != nil {
		t.Errorf("%d of %d frames, drops %v, a ring: %v", s.frames, s.n, s.drops, s.ring != nil)
	}
	want := fmt.Sprintf("frame %d\n", s.n-1)
	if got, err := os.ReadFile("/proc/self/comm"); err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}
