package ovsdb

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

// TestBusyServer: a client waits for room in a server's queue of connections, as long as its
// context lasts.
func TestBusyServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.sock")
	server, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		defer func() { _ = syscall.Close(server) }()
		err = errors.Join(syscall.Bind(server, &syscall.SockaddrUnix{Name: path}), syscall.Listen(server, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	for { // until the queue is full
		conn, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path, "Open_vSwitch"); !errors.Is(err, syscall.EAGAIN) ||
		!strings.Contains(err.Error(), "ovsdb-server is stopped") {
		t.Errorf("with a full queue: %v", err)
	}
	dialled := make(chan error, 1)
	go func() {
		c, err := Dial(t.Context(), path, "Open_vSwitch")
		if err == nil {
			err = c.Close()
		}
		dialled <- err
	}()
	nstest.Eventually(t, 20*time.Second, "a client waits", func() bool {
		return nstest.Waiting("internal/ovsdb.connect") > 0
	})
	conn, _, err := syscall.Accept4(server, syscall.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(conn) }()
	if err := <-dialled; err != nil {
		t.Errorf("once there is room: %v", err)
	}
}
