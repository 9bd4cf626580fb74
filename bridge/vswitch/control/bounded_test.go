package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

// fake listens like a switch, and answers every request with the same message again and again.
func fake(t *testing.T, message string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close() //nolint:errcheck
		if _, err := conn.Read(make([]byte, maxMessage)); err != nil {
			return
		}
		for err == nil {
			_, err = conn.Write([]byte(message))
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return path
}

// TestAnswersAreBounded: who runs a switch may answer anything, for ever.
func TestAnswersAreBounded(t *testing.T) {
	port := `{"name":"a","kind":"socket","config":{}}`
	ports := func(n int, one string) string {
		return `{"more":true,"ports":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `]}`
	}
	filler := strings.Repeat("x", maxMessage-1000)
	for what, test := range map[string]struct{ message, want string }{
		"ports without end":    {ports(200, port), "more than 1024 ports"},
		"many in one message":  {ports(maxMessage/3-20, "{}"), "more than 2048 items in one message"},
		"no port":              {ports(1, `{"name":"a b","kind":"socket"}`), "name"},
		"reasons without end":  {ports(1, `{"name":"a","kind":"socket","config":{},"stats":{"drops":{`+reasons(4000)+`}}}`), "4000 drop reasons"},
		"bytes without end":    {`{"more":true,"info":{"name":"` + filler + `"}}`, "more than 33554432 bytes or 65536 messages"},
		"nothing without end":  {`{"more":true}`, "more than 33554432 bytes"},
		"more than a message":  {strings.Repeat(" ", maxMessage) + "{}", "message"},
		"something that is no": {`{"ports":{}}`, "want a list"},
	} {
		t.Run(what, func(t *testing.T) {
			c := client(t, fake(t, test.message))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			kept := 0
			err := c.EachPort(soon(t), func(Port) error { kept++; return nil })
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), test.want) || kept > maxPortCount {
				t.Errorf("%d ports, %.200v; want %q", kept, err, test.want)
			}
			if more := int64(after.HeapSys) - int64(before.HeapSys); more > 24<<20 {
				t.Errorf("it took %d bytes", more)
			}
		})
	}
}

func reasons(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"r%d":1`, i))
	}
	return strings.Join(all, ",")
}

// TestDialFound: in another user's folder a switch may be anything.
func TestDialFound(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root, who alone looks into others' directories")
	root, _ := serve(t)
	const user = 54321
	dir := filepath.Join(t.TempDir(), "vmnet-54321", "switch")
	sockets := map[string]func(path string) error{
		"link":     func(path string) error { return os.Symlink(root, path) },
		"fifo":     func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"hardlink": func(path string) error { return os.Link(root, path) },
		"none":     func(string) error { return nil },
		"roots": func(path string) error {
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
			return os.Chown(path, user, user) // it is not that user who listens
		},
	}
	for name, make := range sockets {
		own := filepath.Join(dir, name)
		path := filepath.Join(own, socketName)
		err := errors.Join(os.MkdirAll(own, 0o700), os.Chown(dir, user, user), os.Chown(own, user, user), make(path))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c, err := DialFound(soon(t), path)
		if err == nil {
			t.Errorf("%s was connected to", name)
			_ = c.Close()
		}
		if name == "none" && !errors.Is(err, ErrNotRunning) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
}
