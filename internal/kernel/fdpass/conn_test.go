package fdpass

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// connected returns both ends of a connection that preserves message boundaries.
func connected(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unixpacket"}
	ln, err := net.ListenUnix("unixpacket", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.DialUnix("unixpacket", nil, addr); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

func TestOverConnection(t *testing.T) {
	a, b := connected(t)
	r, w, err := os.Pipe() // registered with the runtime's poller
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	room := make([]byte, 100)
	for _, n := range []int{0, 1, 2, 40, MaxFiles} {
		var files []*os.File
		for range n {
			files = append(files, w)
		}
		if err := SendOver(a, []byte("hello"), files...); err != nil {
			t.Fatal(err)
		}
		got, received, err := ReceiveOver(b, room, MaxFiles)
		if err != nil || string(got) != "hello" || len(received) != n {
			t.Fatalf("%d files: %q, %d files, %v", n, got, len(received), err)
		}
		CloseAll(received)
	}
	if err := r.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(room); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the file was changed: %v", err)
	}
	// For an odd limit, the buffer of the control message has room for one file more.
	for _, limit := range []int{0, 1, 2} {
		if err := SendOver(a, []byte("hello"), w, w, w); err != nil {
			t.Fatal(err)
		}
		if _, files, err := ReceiveOver(b, room, limit); err == nil || len(files) > 0 ||
			!strings.Contains(err.Error(), "a message of more than") {
			t.Errorf("at most %d files: %d, %v", limit, len(files), err)
		}
	}
	if err := SendOver(a, nil); err == nil {
		t.Error("an empty message was sent")
	}
	peer, err := PeerOf(b)
	if int(peer.Pid) != os.Getpid() || int(peer.Uid) != os.Geteuid() || err != nil {
		t.Errorf("process %d of user %d, %v", peer.Pid, peer.Uid, err)
	}
	if err := b.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReceiveOver(b, room, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("late: %v", err)
	}
	_ = a.Close()
	if _, _, err := ReceiveOver(b, room, 0); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
}
