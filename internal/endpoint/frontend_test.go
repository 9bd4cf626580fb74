package endpoint

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
)

// deadSocket makes the socket that a QEMU leaves which is killed.
func deadSocket(t *testing.T, dir, device string) string {
	t.Helper()
	const noProcess = 1<<22 + 1 // more than the kernel's PID_MAX_LIMIT
	path := FrontendSocket(dir, noProcess, device)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTidyFrontends(t *testing.T) {
	dir := t.TempDir()
	dead := deadSocket(t, dir, "vmnet-net0")
	l, err := net.Listen("unix", FrontendSocket(dir, os.Getpid(), "vmnet-net0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, dry := range []bool{true, false} {
		if removed, err := tidyFrontends(dir, dry); err != nil || len(removed) != 1 || removed[0] != dead {
			t.Errorf("dry %v: %q, %v, want %s", dry, removed, err, dead)
		}
	}
	if removed, err := tidyFrontends(dir, false); err != nil || len(removed) > 0 {
		t.Errorf("again: %q, %v", removed, err)
	}
}

// TestTidyFrontendsOfAFullDirectory: a user who fills the directory does not make root read all of
// it.
func TestTidyFrontendsOfAFullDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first := deadSocket(t, dir, "0")
	for i := range maxFrontends {
		// A link is made faster than a socket.
		if err := os.Link(first, fmt.Sprintf("%s-%d", first, i)); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := tidyFrontends(dir, true)
	if !errors.Is(err, errFull) || len(removed) != maxFrontends {
		t.Errorf("%d of %d sockets, %v", len(removed), maxFrontends+1, err)
	}
	if err := MakeFrontendDir(dir, os.Getuid()); err != nil {
		t.Errorf("the user gets no further NIC: %v", err)
	}
	if removed, err := tidyFrontends(dir, false); err != nil || len(removed) != 1 {
		t.Errorf("the rest: %q, %v", removed, err)
	}
}
