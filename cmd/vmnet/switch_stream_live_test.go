package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// TestLiveStreamBetweenSwitches joins two switches by a stream, each with a station on a tap. The
// one that listens is killed and started again.
func TestLiveStreamBetweenSwitches(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stream.sock")
	near, far := nstest.New(t), nstest.New(t)
	station(t, near.Do, nstest.Handle(t, near), "10.7.0.1/24")
	nl := nstest.Handle(t, far)
	station(t, far.Do, nl, "10.7.0.2/24")
	link, err := nl.LinkByName("tap0")
	if err == nil {
		err = nl.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 2})
	}
	if err != nil {
		t.Fatal(err)
	}
	b := runSwitch(t, far, nil, "--tap", "tap0")
	add := exec.Command("vmnet", "switch", "add-port", b.socket, "--stream", path+",client,name=up")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("add-port: %v: %s", err, out)
	}
	a := runSwitch(t, near, nil, "--tap", "tap0,vlan=7", "--stream", path+",name=down,vlan=7,mtu=1400")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	send := func() {
		t.Helper()
		var s *traffic.Server
		if err := near.Do(func() (err error) { s, err = traffic.ServeTCP("10.7.0.1:0"); return err }); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := far.Do(func() error { _, err := traffic.SendTCP(ctx, s.Addr, 4<<20); return err }); err != nil {
			t.Error(err)
		}
	}
	for sw, name := range map[*running]string{a: "down", b: "up"} {
		nstest.Eventually(t, patience, name+" is connected", func() bool {
			p := sw.ports()[name]
			return p.Stats.State == vport.StateUp && p.Stats.Kind == "stream" && p.Device == path
		})
	}
	send()
	if p := a.ports()["down"]; p.Stats.Total().RxBytes < 4<<20 {
		t.Errorf("%+v", p.Stats)
	}
	a.kill()
	nstest.Eventually(t, patience, "the port is down without the other switch", func() bool {
		return b.ports()["up"].Stats.State == vport.StateDown
	})
	a = startSwitch(t, near, a.socket, nil, "--tap", "tap0,vlan=7", "--stream", path+",name=down,vlan=7")
	nstest.Eventually(t, patience, "it is up again", func() bool {
		return b.ports()["up"].Stats.State == vport.StateUp
	})
	send()
	a.end()
	b.end()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket's file is still there")
	}
}
