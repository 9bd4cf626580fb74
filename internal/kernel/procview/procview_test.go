package procview

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, network, name string) {
	t.Helper()
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: name, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// shortDir returns the working directory by a short path, since a socket's path is limited.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "view")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Chdir(dir)
	return dir
}

func names(t *testing.T) (all []string) {
	t.Helper()
	found, err := Listening(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.FD)); err != nil ||
			!strings.HasPrefix(target, "socket:") {
			t.Errorf("%+v: its fd is %q, %v", l, target, err)
		}
		all = append(all, l.Name)
	}
	return all
}

func TestListening(t *testing.T) {
	dir := shortDir(t)
	listen(t, "unix", "relative")
	listen(t, "unix", dir+"/a b")
	listen(t, "unix", "@view"+filepath.Base(dir))
	listen(t, "unixpacket", "packets") // no stream
	connected, err := net.Dial("unix", "relative")
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	if err := os.Remove(dir + "/a b"); err != nil { // the socket keeps its name
		t.Fatal(err)
	}
	want := []string{"relative", dir + "/a b", "@view" + filepath.Base(dir)}
	if got := names(t); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := Listening(-1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

// TestAForgedLine: a name with a line feed begins another line of the kernel's list.
func TestAForgedLine(t *testing.T) {
	shortDir(t)
	listen(t, "unix", "real")
	sockets, err := socketsOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for inode := range sockets {
		forged := fmt.Sprintf("x\n0: 00000002 00000000 00010000 0001 01 %d forged", inode)
		if strings.Contains(forged, "/") || len(forged) > 107 {
			t.Fatal(forged)
		}
		listen(t, "unix", forged)
	}
	if got := names(t); !slices.Contains(got, "real") {
		t.Errorf("%q: want the real one among them", got)
	}
}

func TestParseListener(t *testing.T) {
	for line, want := range map[string]string{
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/a":   "12345 /run/a",
		"0000000000000000: 00000002 00000000 00010000 0001 01    45 /run/a b": "45 /run/a b",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 @a@@":     "12345 @a@@",
		"0000000000000000: 00000003 00000000 00000000 0001 03 12345 /run/a":   "",
		"0000000000000000: 00000002 00000000 00010000 0005 01 12345 /run/a":   "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345":          "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 x /run/a":       "",
		"Num       RefCount Protocol Flags    Type St Inode Path":             "",
		"": "",
	} {
		inode, name, ok := parseListener(line)
		if got := fmt.Sprint(inode, " ", name); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v, want %q", line, got, ok, want)
		}
	}
}

func TestLocate(t *testing.T) {
	dir := shortDir(t)
	if err := os.WriteFile("file", []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"file", dir + "/file"} {
		files, err := Locate(t.Context(), os.Getpid(), path)
		if err != nil || len(files) != 1 { // it is the same file in both root directories
			t.Errorf("%s: %d, %v", path, len(files), err)
		}
		closeAll(files)
		text, err := Read(t.Context(), os.Getpid(), path, 4)
		if err != nil || string(text) != "text" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	if _, err := Locate(t.Context(), os.Getpid(), dir+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestReadOpensFilesOnly: a file that a process names is opened only if that has no effects.
func TestReadOpensFilesOnly(t *testing.T) {
	dir := shortDir(t)
	if err := errors.Join(unix.Mkfifo("fifo", 0o600), os.WriteFile("long", make([]byte, 5), 0o600),
		os.Symlink("/proc/self/fd/0", "magic")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, path := range []string{"fifo", dir + "/fifo", "long", "/dev/zero", ".", "none", "magic"} {
		if text, err := Read(ctx, os.Getpid(), path, 4); err == nil {
			t.Errorf("%s was read: %q", path, text)
		}
	}
	if ctx.Err() != nil {
		t.Error("it took its time")
	}
}
