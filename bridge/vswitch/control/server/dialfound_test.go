package server

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
)

// TestDialFound puts files other than a user's switch into that user's directory. DialFound must
// connect to none of them.
func TestDialFound(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root: only root looks into other users' directories")
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
			return os.Chown(path, user, user) // root listens, although the user owns the socket
		},
	}
	for name, make := range sockets {
		own := filepath.Join(dir, name)
		path := filepath.Join(own, control.SocketName)
		err := errors.Join(os.MkdirAll(own, 0o700), os.Chown(dir, user, user), os.Chown(own, user, user), make(path))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c, err := control.DialFound(soon(t), path)
		if err == nil {
			t.Errorf("%s was connected to", name)
			_ = c.Close()
		}
		if name == "none" && !errors.Is(err, control.ErrNotRunning) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
}
