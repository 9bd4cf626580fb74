package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// TestLiveVXLANBetweenSwitches joins switches on two hosts, each with a station on a tap. One of
// them runs as a user without privilege. It is killed and started again.
func TestLiveVXLANBetweenSwitches(t *testing.T) {
	near, far := nstest.New(t), nstest.New(t)
	nlNear, nlFar := nstest.Handle(t, near), nstest.Handle(t, far)
	underlay(t, near, far, 1500)
	station(t, near.Do, nlNear, "10.7.0.1/24")
	station(t, far.Do, nlFar, "10.7.0.2/24")
	link, err := nlFar.LinkByName("tap0")
	if err == nil {
		err = nlFar.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 2})
	}
	if err != nil {
		t.Fatal(err)
	}
	a := runSwitch(t, near, nil, "--tap", "tap0,vlan=7", "--vxlan", "vni=77,remote=192.0.2.2,trunk=7",
		"--user", "65534:65534")
	b := runSwitch(t, far, nil, "--tap", "tap0")
	add := exec.Command("vmnet", "switch", "add-port", b.socket, "--netns", far.Path(),
		"--vxlan", "up,vni=77,local=192.0.2.2,remote=192.0.2.1,mtu=1400")
	out, err := add.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "up added: vxlan vni 77 of 192.0.2.1") {
		t.Fatalf("add-port: %v: %s", err, out)
	}
	if p := a.ports()["vxlan77"]; p.Stats.MTU != 1450 || p.Stats.Kind != "vxlan" || p.VXLAN.VNI != 77 {
		t.Errorf("%+v, %+v", p, p.Stats)
	}
	if p := b.ports()["up"]; p.Stats.MTU != 1400 || p.Stats.State != vport.StateUp {
		t.Errorf("%+v, %+v", p, p.Stats)
	}
	remove := exec.Command("vmnet", "switch", "remove-port", b.socket, "up")
	if out, err := remove.CombinedOutput(); err != nil {
		t.Fatalf("remove-port: %v: %s", err, out)
	}
	b.end()
	// b carries VLAN 7 with its tag, as a does.
	b = runSwitch(t, far, nil, "--tap", "tap0,vlan=7", "--vxlan", "up,vni=77,remote=192.0.2.1,trunk=7")
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
	send()
	out, err = exec.Command("vmnet", "switch", "fdb", b.socket, "-o", "json").Output()
	var entries []control.FDBEntry
	if err == nil {
		err = json.Unmarshal(out, &entries)
	}
	found := false
	for _, e := range entries {
		found = found || e.Port == "up" && e.Remote == "192.0.2.1" && e.VLAN == 7
	}
	if err != nil || !found {
		t.Errorf("%v: %s", err, out)
	}
	for _, verb := range []string{"show", "fdb"} {
		out, err := exec.Command("vmnet", "switch", verb, b.socket).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "192.0.2.1") {
			t.Errorf("%s: %v: %s", verb, err, out)
		}
	}
	a.kill()
	a = startSwitch(t, near, a.socket, nil, "--tap", "tap0,vlan=7", "--vxlan", "vni=77,remote=192.0.2.2,trunk=7")
	send()
	a.end()
	b.end()
}

// underlay joins two hosts by a veth pair with that MTU, with the addresses 192.0.2.1 and
// 192.0.2.2.
func underlay(t *testing.T, near, far *netns.NS, mtu int) {
	t.Helper()
	nl := nstest.Handle(t, near)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "u0", mtu
	if err := nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "u0", PeerNamespace: netlink.NsFd(int(far.Handle())), PeerMTU: uint32(mtu),
	}); err != nil {
		t.Fatal(err)
	}
	for address, nl := range map[string]*netlink.Handle{"192.0.2.1/24": nl, "192.0.2.2/24": nstest.Handle(t, far)} {
		link, err := nl.LinkByName("u0")
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(nl.AddrAdd(link, a), nl.LinkSetUp(link)); err != nil {
			t.Fatal(err)
		}
	}
}
