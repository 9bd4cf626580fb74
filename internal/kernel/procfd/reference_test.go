package procfd_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// opens counts how often any process opens a file.
func opens(t *testing.T, path string) func() int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() int {
		n, err := unix.Read(fd, make([]byte, 64<<10))
		if errors.Is(err, unix.EAGAIN) {
			return 0
		}
		return max(n, 0) / unix.SizeofInotifyEvent
	}
}

// others makes a file of each kind but a regular one, by the name of its kind.
func others(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	paths := map[string]string{}
	for _, kind := range []string{"fifo", "socket", "directory", "device", "link"} {
		paths[kind] = filepath.Join(dir, kind)
	}
	l, err := net.Listen("unix", paths["socket"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	// The other end of a pty would notice its open(2).
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pty.Close() })
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	err = errors.Join(err, unix.Mkfifo(paths["fifo"], 0o666), os.Mkdir(paths["directory"], 0o700),
		os.Symlink(filepath.Join("/dev/pts", strconv.Itoa(n)), paths["device"]),
		os.Symlink(paths["fifo"], paths["link"]))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestOpenRegularOpensNothingElse(t *testing.T) {
	for kind, path := range others(t) {
		for _, open := range []func(string) (*os.File, error){procfd.OpenRegular, procfd.OpenRoots} {
			opened := opens(t, path)
			f, err := open(path) // the FIFO has no writer
			if !errors.Is(err, procfd.ErrNotRegular) {
				t.Errorf("%s: %v", kind, err)
			}
			if err == nil {
				_ = f.Close()
			}
			if n := opened(); n != 0 {
				t.Errorf("%s was opened %d times", kind, n)
			}
		}
	}
}

func TestOpenRegular(t *testing.T) {
	for name, open := range map[string]func(string) (*os.File, error){
		"OpenRegular": procfd.OpenRegular, "OpenRoots": procfd.OpenRoots,
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if text, err := io.ReadAll(f); string(text) != "text" || err != nil {
			t.Errorf("%s: %q, %v", name, text, err)
		}
		if _, err := open(path + "x"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: none: %v", name, err)
		}
	}
}

// TestReferenceStaysTheFile replaces a file after a Reference to it was opened.
func TestReferenceStaysTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := procfd.Refer(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	fd, err := r.Open(unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if text, err := io.ReadAll(f); string(text) != "first" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestReferWithinFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o600),
		os.Symlink("a", filepath.Join(dir, "b")), os.Symlink("file", filepath.Join(dir, "a/link")))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{"a/file": nil, "b/file": unix.ELOOP, "a/link": unix.ELOOP} {
		r, err := procfd.ReferWithin(filepath.Join(dir, path))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			r.Close()
		}
	}
}
