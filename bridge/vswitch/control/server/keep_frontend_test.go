package server

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// messagesAt is where a journal counts the messages of a frontend.
const messagesAt = 24

// TestKeptFrontend goes on with a guest that shares its memory, whose frontend has one connection,
// after the switch was killed: also with what the guest has sent while no switch ran.
func TestKeptFrontend(t *testing.T) {
	path, _, m := keeping(t)
	c := client(t, path)
	b := guest(t, c, control.Port{Name: "b"})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	conn, err := net.FileConn(far)
	_ = far.Close()
	if err == nil {
		err = c.AddPort(soon(t), control.Port{Name: "a", Kind: control.VhostUser}, near)
	}
	_ = near.Close()
	if err != nil {
		t.Fatal(err)
	}
	f, err := frontend.New(conn.(*net.UnixConn), frontend.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sends := func(n byte) {
		t.Helper()
		whole := append(make([]byte, frontend.Header), frame(station(9), station(n))...)
		if f.Pair[0].Send(whole) != 1 {
			t.Fatal("the guest's ring is full")
		}
	}
	gets := func(n byte) {
		t.Helper()
		if got := awaitFrame(t, b); !bytes.Equal(got, frame(station(9), station(n))) {
			t.Errorf("%x", got)
		}
	}
	sends(1)
	gets(1)
	nstest.Eventually(t, patience, "the session is stored", func() bool { return sessionIsLatest(t, m, 2) })
	left := m.copied(t)
	if err := c.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
	sends(2)

	again := left.copied(t)
	if _, err := again.files[fileName(2, 1)].WriteAt([]byte{0xff}, messagesAt); err != nil {
		t.Fatal(err)
	}
	other, notes := goOn(t, again)
	if len(notes.all) != 1 || !strings.Contains(notes.all[0], "connect again") {
		t.Errorf("a session with a message that was not handled: %q", notes.all)
	}
	if err := other.ports.remove("b"); err != nil {
		t.Error(err)
	}
	if _, err := left.files[fileName(2, 1)].WriteAt(latest(t, left, 2), messagesAt); err != nil {
		t.Fatal(err)
	}
	s, notes := goOn(t, left)
	gets(2)
	sends(3)
	gets(3)
	send(t, b, frame(station(1), station(9)))
	nstest.Eventually(t, patience, "the guest has a frame", func() bool {
		got, ok := f.Pair[0].Receive()
		return ok && bytes.Equal(got[frontend.Header:], frame(station(1), station(9)))
	})
	if len(notes.all) > 0 || len(s.Ports()) != 2 {
		t.Errorf("%q, %+v", notes.all, s.Ports())
	}
	_ = f.Hangup()
	nstest.Eventually(t, patience, "nothing keeps the memory of a guest that has gone", func() bool {
		return len(left.names()) == 2+1
	})
	if err := s.ports.remove("a"); err != nil {
		t.Error(err)
	}
	if all := left.names(); len(all) != 2+1 {
		t.Errorf("%q are stored", all)
	}
}

// latest returns the number of messages that a stored session has, as the journal has it.
func latest(t *testing.T, m *memory, id int) []byte {
	t.Helper()
	f := m.files[sessionName(id, -1)]
	if f == nil {
		return nil
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxKept))
	var kept struct{ Session struct{ Messages uint64 } }
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.AppendUint64(nil, kept.Session.Messages)
}

func sessionIsLatest(t *testing.T, m *memory, id int) bool {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	counted := make([]byte, 8)
	if _, err := m.files[fileName(id, 1)].ReadAt(counted, messagesAt); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(counted, latest(t, m, id))
}
