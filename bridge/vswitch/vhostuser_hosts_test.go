package vswitch_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// openVhostUser makes a wire that was given a connected frontend, and returns the frontend's end.
func openVhostUser(t testing.TB, pairs int) (*vswitch.Wire, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "switch"), os.NewFile(uintptr(fds[1]), "frontend")
	defer near.Close()
	defer far.Close()
	w, err := vswitch.OpenVhostUser(near, "", pairs)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	return w, c.(*net.UnixConn)
}

// vhostHost makes host n as the guest of a vhost-user frontend: a tap with vnet headers, whose
// frames a driver copies to and from its rings.
func vhostHost(t *testing.T, sw *vswitch.Switch, n int, cfg vport.Config, driver frontend.Config) *host {
	t.Helper()
	w, conn := openVhostUser(t, max(driver.Pairs, 1))
	p := addPort(t, sw, fmt.Sprintf("h%d", n), w, cfg)
	f, err := frontend.New(conn, driver)
	if err != nil {
		t.Fatal(err)
	}
	ns := nstest.New(t)
	tap, err := tun.CreateNumbered(ns, true)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, n, tap.Name)
	h.ns, h.nl = ns, nstest.Handle(t, ns)
	fd := int(tap.Queues()[0].Fd())
	const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if err := errors.Join(unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, frontend.Header),
		unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // after drive's
	drive(t, f.Pair[0], pollable(t, tap.Queues()[0]))
	_ = tap.Close()
	h.up(max(cfg.MTU, 1500))
	nstest.Eventually(t, 20*time.Second, "the port is up", func() bool { return p.State() == vport.StateUp })
	return h
}

// drive copies frames between a guest's tap and its rings until the test ends.
func drive(t *testing.T, p *frontend.Pair, tap *os.File) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{}, 2)
	t.Cleanup(func() {
		close(stop)
		_ = tap.Close()
		<-done
		<-done
	})
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 68<<10)
		for {
			n, err := tap.Read(b)
			if err != nil {
				return
			}
			for p.Send(b[:n]) == 0 {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Microsecond):
				}
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if f, ok := p.Await(20 * time.Millisecond); ok {
				_, _ = tap.Write(f)
			}
		}
	}()
}
