package server

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
)

// TestOneListener lets many processes listen at once on a path where a killed one has left its
// socket.
func TestOneListener(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "sw")
		nstest.LeaveSocket(t, "unixpacket", path)
		var mu sync.Mutex
		var won []*Listener
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				l, err := Listen(path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, l)
				} else if !errors.Is(err, ErrRunning) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if len(won) != 1 {
			t.Fatalf("%d listen", len(won))
		}
		if c, err := control.Dial(soon(t), path); err != nil {
			t.Error(err)
		} else {
			_ = c.Close()
		}
		if err := won[0].Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestOneStarts starts two switches of one name at once. The first one ends up listening or not.
func TestOneStarts(t *testing.T) {
	for _, listens := range []bool{true, false} {
		dir := t.TempDir()
		folder := func() (string, error) {
			own, err := makeDir(dir, "sw", os.Geteuid(), os.Getegid())
			return filepath.Join(own, control.SocketName), err
		}
		first, err := prepareIn(folder)
		if err != nil {
			t.Fatal(err)
		}
		type result struct {
			*Place
			error
		}
		done := make(chan result)
		go func() {
			p, err := prepareIn(folder)
			done <- result{p, err}
		}()
		select {
		case r := <-done:
			t.Fatalf("the second did not wait: %v", r.error)
		case <-time.After(50 * time.Millisecond):
		}
		if listens {
			l, err := first.Listen()
			if err != nil {
				t.Fatal(err)
			}
			if r := <-done; !errors.Is(r.error, ErrRunning) {
				t.Error(r.error)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		first.Forget()
		r := <-done
		if r.error != nil {
			t.Fatal(r.error)
		}
		l, err := r.Listen()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestListenRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), nil, 0o600), os.Symlink(at("nowhere"), at("link")),
		os.Mkdir(at("dir"), 0o700)); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", at("stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, want := range map[string]string{
		"file": "is not a socket", "link": "is not a socket", "dir": "is not a socket",
		"stream": "something other than a switch", "none/sw": "no such file",
	} {
		if l, err := Listen(at(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	if _, err := os.Lstat(at("file")); err != nil {
		t.Error(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(at("sw")); err == nil || !strings.Contains(err.Error(), "another process has locked") {
		t.Errorf("%v, %v", l, err)
	}
}

// TestCloseLeavesOthers replaces the socket of a listener.
func TestCloseLeavesOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sw")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", ".x", "-x", "a b", "ü", "a\n",
		strings.Repeat("n", 65), "/" + strings.Repeat("p", 107),
	} {
		if path, err := control.Path(name); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%q: %s, %v", name, path, err)
		}
		if place, err := Prepare(name, os.Geteuid(), os.Getegid()); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%q: %v, %v", name, place, err)
		}
	}
	for _, name := range []string{"sw0", "a.b_c-9", strings.Repeat("n", 64)} {
		if path, err := control.Path(name); err != nil || filepath.Base(filepath.Dir(path)) != name {
			t.Errorf("%q: %s, %v", name, path, err)
		}
	}
	for _, path := range []string{"./x", "/tmp/x"} {
		if got, err := control.Path(path); got != path || err != nil {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
}
