package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/nstest"
)

// raw is a connection without a client's rules.
func raw(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// reply returns what the switch answers to a message, or "closed" if it hangs up.
func reply(t testing.TB, conn *net.UnixConn, message []byte, files ...*os.File) string {
	t.Helper()
	if err := fdpass.SendOver(conn, message, files...); err != nil {
		return "closed"
	}
	b, _, err := fdpass.ReceiveOver(conn, make([]byte, control.MaxMessage), 0)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return "closed"
	case err != nil:
		t.Fatal(err)
	}
	return string(b)
}

func openFiles(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestMessages(t *testing.T) {
	path, _ := serve(t)
	long := strings.Repeat("x", control.MaxLabel+1)
	port := func(p control.Port) string {
		b, err := json.Marshal(control.Request{Do: control.DoAddPort, Port: &p})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	trunk := vport.Config{}
	for id := 1; id < 4000; id += 2 {
		trunk.Trunk = append(trunk.Trunk, brport.VLANRange{First: id, Last: id})
	}
	for _, test := range []struct{ message, want string }{
		{"nonsense", "invalid character"},
		{`{"do":"info"`, "unexpected EOF"},
		{`{"do":"info"}{"do":"stop"}`, "unexpected text after the object"},
		{`{}`, "this switch does not know"},
		{`{"do":"explode"}`, "it may be of another version"},
		{`{"do":"info","verbose":true}`, "unknown field"},
		{`{"do":["info"]}`, "cannot unmarshal"},
		{`{"do":"add-port"}`, "add-port without its argument"},
		{`{"do":"add-static"}`, "add-static without its argument"},
		{`{"do":"set-port","name":"x"}`, "set-port without its argument"},
		{`{"do":"set-port","name":"x","config":{}}`, "no port of that name"},
		{`{"do":"set-port","name":"x","config":{"vlans":1}}`, "unknown field"},
		{`{"do":"remove-port","name":"x"}`, "no port of that name"},
		{`{"do":"set-label","name":"x"}`, "no port of that name"},
		{`{"do":"set-label","name":"x","label":"` + long + `"}`, "want at most 255"},
		{`{"do":"add-port","port":{"name":"x","kind":"socket","config":{"vlans":1}}}`, "unknown field"},
		{port(control.Port{Name: "x", Kind: control.Socket}), "0 files: want 1 to 1"},
		{port(control.Port{Name: "x", Kind: control.Socket, Holder: 1}), "0 files: want 2 to 2"},
		{port(control.Port{Name: "x", Kind: control.Packet}), "0 files: want 4 to 9"},
		{port(control.Port{Name: "x", Kind: control.Tap}), "0 files: want 1 to 250"},
		{strings.Repeat("[", control.MaxMessage), "exceeded max depth"},
		{strings.Repeat("\x00", control.MaxMessage), "invalid character"},
		{strings.Repeat(" ", control.MaxMessage+1), "a message of more than 65536 bytes"},
	} {
		conn := raw(t, path)
		if got := reply(t, conn, []byte(test.message)); !strings.Contains(got, test.want) {
			t.Errorf("%.80s: %.200s\nwant %s", test.message, got, test.want)
		}
		if len(test.message) > control.MaxMessage {
			if got := reply(t, conn, []byte(`{"do":"info"}`)); got != "closed" {
				t.Errorf("too long a message: then %s", got)
			}
			continue
		}
		if got := reply(t, conn, []byte(`{"do":"info"}`)); !strings.Contains(got, `"pid":`) {
			t.Errorf("%.80s: then %s", test.message, got)
		}
	}
	c := client(t, path)
	near, _ := socketFiles(t)
	for _, p := range []control.Port{
		{Name: "", Kind: control.Socket},
		{Name: "two words", Kind: control.Socket},
		{Name: "-o", Kind: control.Socket},
		{Name: "new\nline", Kind: control.Socket},
		{Name: "\xff", Kind: control.Socket},
		{Name: strings.Repeat("n", vport.MaxName+1), Kind: control.Socket},
		{Name: "x", Kind: "tun"},
		{Name: "x", Kind: control.Socket, Holder: -1},
		{Name: "x", Kind: control.Socket, Label: long},
		{Name: "x", Kind: control.Socket, Device: "a b"},
		{Name: "x", Kind: control.Socket, Config: vport.Config{MTU: 1}},
		{Name: "x", Kind: control.Socket, Config: trunk},
	} {
		if err := c.AddPort(soon(t), p, near); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%.100v: %v", p, err)
		}
		if got := reply(t, raw(t, path), []byte(port(p)), near); !strings.Contains(got, `"error"`) {
			t.Errorf("%.100v: %s", p, got)
		}
	}
	if got := names(t, c); len(got) != 0 {
		t.Errorf("ports: %v", got)
	}
}

// TestEmptyMessage sends a file without a byte, which looks like the end of the connection. Go's
// own functions would add a byte.
func TestEmptyMessage(t *testing.T) {
	path, _ := serve(t)
	conn := raw(t, path)
	reply(t, conn, []byte(`{"do":"flush"}`))
	before := openFiles(t)
	rights := unix.UnixRights(0)
	hdr := unix.Msghdr{Control: &rights[0]}
	hdr.SetControllen(len(rights))
	rc, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = rc.Control(func(fd uintptr) {
		if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&hdr)), 0); errno != 0 {
			t.Error(errno)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	nstest.Eventually(t, patience, "the switch has closed all files", func() bool { return openFiles(t) == before-1 })
}

// TestFiles sends files that are not those of a port.
func TestFiles(t *testing.T) {
	path, _ := serve(t)
	plain, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stream, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(stream), "stream")
	defer other.Close()
	_, far := socketFiles(t)
	before := openFiles(t)
	c := client(t, path)
	_, pidfd := sleeper(t)
	for _, f := range []*os.File{plain, r, other, far, pidfd} {
		for _, kind := range []string{control.Tap, control.Packet, control.Socket} {
			if kind == control.Socket && f == far {
				continue
			}
			files := []*os.File{f}
			if kind == control.Packet {
				files = append(files, f)
			}
			if err := c.AddPort(soon(t), control.Port{Name: "x", Kind: kind}, files...); !errors.Is(err,
				brport.ErrInvalid) {
				t.Errorf("%s as a %s: %v", f.Name(), kind, err)
			}
		}
	}
	many := slices.Repeat([]*os.File{plain}, fdpass.MaxFiles)
	for _, message := range []string{
		`{"do":"info"}`,
		`{"do":"add-port","port":{"name":"x","kind":"socket","config":{}}}`, "nonsense",
	} {
		if got := reply(t, raw(t, path), []byte(message), many...); !strings.Contains(got, `"kind":"invalid"`) {
			t.Errorf("%s with %d files: %s", message, len(many), got)
		}
	}
	for i := range 30 { // no replies are read
		conn := raw(t, path)
		for range 10 {
			_ = fdpass.SendOver(conn, []byte(`{"do":"info"}`), many[:20]...)
		}
		if i%2 == 0 {
			_ = conn.Close()
		}
	}
	if got := names(t, c); len(got) != 0 {
		t.Errorf("ports: %v", got)
	}
	const clients = 40 // both ends of those that are still open
	nstest.Eventually(t, patience, "the files are closed", func() bool { return openFiles(t) < before+2*clients })
}

// TestClientLeftBeforeTheAnswer checks that a switch that was stopped does not perform the requests
// of clients that have given up meanwhile.
func TestClientLeftBeforeTheAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sw")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	near, _ := socketFiles(t)
	gone, stays := raw(t, path), raw(t, path)
	for conn, name := range map[*net.UnixConn]string{gone: "gone", stays: "stays"} {
		message := fmt.Sprintf(`{"do":"add-port","port":{"name":%q,"kind":"socket","config":{}}}`, name)
		if err := fdpass.SendOver(conn, []byte(message), near); err != nil {
			t.Fatal(err)
		}
	}
	_ = gone.Close()
	sw := vswitch.New(vswitch.Config{})
	s := New(sw, control.Info{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	b, _, err := fdpass.ReceiveOver(stays, make([]byte, control.MaxMessage), 0)
	if err != nil || string(b) != "{}" {
		t.Errorf("%s, %v", b, err)
	}
	if got := s.Ports(); len(got) != 1 || got[0].Name != "stays" {
		t.Errorf("%+v", got)
	}
	s.stop()
	if err := errors.Join(<-done, sw.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	s.Close()
}

// TestLiveStranger connects as another user, also where the socket's mode permits it.
func TestLiveStranger(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	path, _ := serve(t)
	for dir := filepath.Dir(path); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	as := func(uid int, do func() error) (err error) {
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			defer close(done)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid),
				uintptr(uid)); errno != 0 {
				err = errno
				return
			}
			err = do()
		}()
		<-done
		return err
	}
	connect := func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		_, _ = unix.Write(fd, []byte(`{"do":"info"}`))
		n, err := unix.Read(fd, make([]byte, control.MaxMessage))
		if err != nil || n != 0 {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return io.EOF
	}
	const nobody = 65534
	if err := as(nobody, connect); !errors.Is(err, unix.EACCES) {
		t.Errorf("by the socket's mode: %v", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := as(nobody, connect); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("by its credentials: %v", err)
	}
}

// FuzzPerform passes any message to a switch, with and without a file.
func FuzzPerform(f *testing.F) {
	for _, seed := range []string{
		`{"do":"info"}`, `{"do":"ports"}`, `{"do":"fdb"}`, `{"do":"flush","name":"a"}`,
		`{"do":"set-label","name":"a","label":"x"}`, `{"do":"set-port","name":"a","config":{"vlan":7,"isolated":true}}`,
		`{"do":"set-port","name":"a"}`, `{"do":"set-port","name":"b","config":{"macs":["02:00:00:00:00:01"],"mtu":9000}}`,
		`{"do":"add-static","entry":{"mac":"02:00:00:00:00:01","vlan":7,"port":"a"}}`,
		`{"do":"remove-static","entry":{"mac":"02:00:00:00:00:01"}}`,
		`{"do":"add-port","port":{"name":"b","kind":"socket","label":"l","holder":1,"config":{"trunk":[{"first":2,"last":5}],"macs":["02:00:00:00:00:01"],"storm":{"unknown":1}}}}`,
		`{"do":"add-port","port":{"name":"b","kind":"tap","config":{}}}`, `{"do":"remove-port","name":"b"}`,
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		f.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{Addresses: 64})
	s := New(sw, control.Info{Name: "sw"})
	f.Cleanup(func() {
		_ = sw.Close()
		s.Close()
		_ = near.Close()
		_ = far.Close()
	})
	f.Fuzz(func(t *testing.T, message []byte, withFile bool) {
		var files []*os.File
		if withFile {
			files = []*os.File{near}
		}
		err := s.performFor(&call{files: files, send: func(a control.Reply, _ ...*os.File) error {
			if b, err := json.Marshal(a); err != nil || len(b) > control.MaxMessage-16 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			return nil
		}}, message)
		if err != nil {
			if b, err := json.Marshal(control.Reply{Error: control.Refuse(err)}); err != nil ||
				len(b) > control.MaxMessage {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		}
		for _, p := range s.Ports() {
			if err := p.Config.Validate(); err != nil || len(p.Label) > control.MaxLabel ||
				len(p.Name) > vport.MaxName || bytes.ContainsAny([]byte(p.Name), " \n") {
				t.Errorf("port %+v: %v", p, err)
			}
			if err := s.ports.remove(p.Name); err != nil {
				t.Error(err)
			}
		}
	})
}
