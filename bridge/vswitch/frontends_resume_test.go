package vswitch

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// TestSessionGoesOn has one switch after the other go on with the sessions of two guests, one of
// which has one connection: neither connects again, and no frame is lost, in particular none that
// a guest sends while no switch runs.
func TestSessionGoesOn(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	path := t.TempDir() + "/b"
	listens, err := endpoint.ListenStream(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*os.File{"a": near, "b": listens}
	t.Cleanup(func() { _, _ = near.Close(), listens.Close() })
	rests := map[string]Rest{}
	var guests []*frontend.Frontend
	for round := range 4 {
		l := newLAN(t, nil)
		if round > 0 { // while no switch runs
			frame := append(make([]byte, frontend.Header), etherFrame(all, mac(1), nil, 100+round)...)
			if guests[0].Pair[0].Send(frame) != 1 {
				t.Fatal("the guest's ring is full")
			}
		}
		ports, release := map[string]*Port{}, l.sw.Hold()
		for name, f := range files {
			w, err := OpenVhostUser(f, "", 2)
			if err == nil {
				r := rests[name]
				if err = w.Resume(r); err == nil {
					ports[name], err = l.sw.AddPort(name, w, vport.Config{})
				}
				_ = r.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		release()
		if round == 0 {
			c, err := net.FileConn(far)
			_ = far.Close()
			if err != nil {
				t.Fatal(err)
			}
			a, err := frontend.New(c.(*net.UnixConn), frontend.Config{Pairs: 2})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = a.Close() })
			guests = []*frontend.Frontend{a, connect(t, ports["b"], path, frontend.Config{Pairs: 2})}
		}
		a, b := driven{t, ports["a"], guests[0]}, driven{t, ports["b"], guests[1]}
		await(t, a.Port, vport.StateUp)
		await(t, b.Port, vport.StateUp)
		if round > 0 {
			b.awaits(etherFrame(all, mac(1), nil, 100+round))
		}
		a.sends(etherFrame(all, mac(1), nil, 60))
		b.awaits(etherFrame(all, mac(1), nil, 60))
		b.sends(etherFrame(mac(1), mac(2), nil, 60))
		a.awaits(etherFrame(mac(1), mac(2), nil, 60))
		for name := range files {
			if rests[name], err = l.sw.HandOver(name); err != nil {
				t.Fatal(err)
			}
			if r := rests[name]; r.Session == nil || len(r.Files) == 0 {
				t.Fatalf("%s: %+v", name, r)
			}
		}
	}
	for _, r := range rests {
		_ = r.Close()
	}
}

// awaits waits for a frame, which is the only one.
func (d driven) awaits(want []byte) {
	d.tb.Helper()
	var got [][]byte
	nstest.Eventually(d.tb, soon, fmt.Sprintf("guest %s has the frame", d.Name()), func() bool {
		got = append(got, d.gets()...)
		return len(got) > 0
	})
	if len(got) != 1 || !bytes.Equal(got[0], want) {
		d.tb.Errorf("%s got %x, want %x", d.Name(), got, want)
	}
}
