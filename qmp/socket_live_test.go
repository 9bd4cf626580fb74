package qmp

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair is two ends of a socketpair of that type. A read waits for a second at most.
func socketPair(t *testing.T, kind int) (near, far *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// TestLivePlugASocket: the backends take a socket by its getfd name. What QEMU itself sends shows
// that frames cross: its announcement of a NIC (announce-self), one in each datagram, or after its
// length in a stream.
func TestLivePlugASocket(t *testing.T) {
	for _, tt := range []struct {
		backend Backend
		kind    int
		before  int // bytes before a frame
	}{{Dgram, unix.SOCK_DGRAM, 0}, {Socket, unix.SOCK_DGRAM, 0}, {Socket, unix.SOCK_STREAM, 4}} {
		backend := tt.backend
		t.Run(fmt.Sprint(backend, tt.before), func(t *testing.T) {
			c := startQEMU(t, "pc").dial(t)
			ctx := within(t, 30*time.Second)
			near, far := socketPair(t, tt.kind)
			label, err := os.CreateTemp(t.TempDir(), "label")
			if err != nil {
				t.Fatal(err)
			}
			defer label.Close()
			mac, _ := net.ParseMAC("52:54:00:aa:bb:cc")
			n := NIC{ID: "vmnet-net0", Backend: backend, Queues: 1, Label: true, MAC: mac, HostMTU: 1400}
			if err := c.Plug(ctx, n, &Files{Queues: []*os.File{far}, Label: label}); err != nil {
				t.Fatal(err)
			}
			_ = far.Close()
			if text := netdevs(t, c); !strings.Contains(text, "type="+string(backend)) ||
				strings.Contains(text, "error") {
				t.Errorf("netdevs: %s", text)
			}
			if err := c.Execute(ctx, "cont", nil, nil); err != nil { // the firmware alone then runs
				t.Fatal(err)
			}
			announce := map[string]any{"initial": 50, "max": 50, "rounds": 1, "step": 1}
			if err := c.Execute(ctx, "announce-self", announce, nil); err != nil {
				t.Fatal(err)
			}
			frame := make([]byte, 2048)
			k, err := near.Read(frame)
			if err != nil || k < 18 || string(frame[tt.before+6:tt.before+12]) != string(mac) {
				t.Errorf("read %x, %v: want a frame of %s", frame[:max(k, 0)], err, mac)
			}
			if err := c.Rollback(ctx, n.ID, 1); err != nil {
				t.Error(err)
			}
			if _, err := near.Write(frame[:60]); err == nil {
				t.Error("QEMU still has its end")
			}
		})
	}
}
