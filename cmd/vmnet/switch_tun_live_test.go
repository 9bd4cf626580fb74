package main

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// TestLiveTunOfSwitch has the host's IP on a switch by a tun that the switch makes, and then by a
// persistent one, and a station on a tap.
func TestLiveTunOfSwitch(t *testing.T) {
	host, guest := nstest.New(t), nstest.New(t)
	nl := nstest.Handle(t, guest)
	station(t, guest.Do, nl, "10.7.0.2/24")
	sw := runSwitch(t, guest, nil, "--tap", "tap0")
	add := func(argument string) string {
		t.Helper()
		out, err := exec.Command("vmnet", "switch", "add-port", sw.socket, "--netns", host.Path(), "--tun",
			argument).CombinedOutput()
		if err != nil {
			t.Fatalf("add-port: %v: %s", err, out)
		}
		return string(out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	send := func(to string) {
		t.Helper()
		nstest.Eventually(t, patience, "the port is up", func() bool {
			return sw.ports()["tun0"].Stats.State == vport.StateUp
		})
		var s *traffic.Server
		if err := host.Do(func() (err error) { s, err = traffic.ServeTCP(to + ":0"); return err }); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := guest.Do(func() error { _, err := traffic.SendTCP(ctx, s.Addr, 8<<20); return err }); err != nil {
			t.Error(err)
		}
	}
	if out := add("tun0,address=10.7.0.1/24,address=fd07::1/64,mtu=1400"); !strings.Contains(out, "tun0, made") {
		t.Errorf("%s", out)
	}
	send("10.7.0.1")
	if err := guest.Do(func() error {
		return exec.Command("ip", "addr", "add", "fd07::2/64", "dev", "tap0", "nodad").Run()
	}); err != nil {
		t.Fatal(err)
	}
	link, err := nl.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	local := portsec.LinkLocal(sw.ports()["tun0"].Config.MACs[0]).WithZone(strconv.Itoa(link.Attrs().Index))
	for _, to := range []string{"fd07::1", local.String()} {
		nstest.Eventually(t, patience, to+" answers", func() bool {
			return guest.Do(func() error {
				_, err := traffic.SendPing(ctx, traffic.Ping{Addr: to, Count: 5, UntilFirst: true})
				return err
			}) == nil
		})
	}
	p := sw.ports()["tun0"]
	if p.Stats.Kind != "tun" || p.Stats.MTU != 1400 || len(p.Config.MACs) != 1 || len(p.Tun.Addresses) != 2 {
		t.Errorf("%+v, %+v", p, p.Stats)
	}
	if out, err := exec.Command("vmnet", "switch", "remove-port", sw.socket, "tun0").CombinedOutput(); err != nil {
		t.Fatalf("remove-port: %v: %s", err, out)
	}
	hostLinks := nstest.Handle(t, host)
	nstest.Eventually(t, patience, "the tun is gone", func() bool {
		_, err := hostLinks.LinkByName("tun0")
		return err != nil
	})
	for _, words := range []string{
		"tuntap add tun0 mode tun vnet_hdr", "addr add 10.7.0.5/24 dev tun0", "link set tun0 up",
	} {
		err := host.Do(func() error { return exec.Command("ip", strings.Fields(words)...).Run() })
		if err != nil {
			t.Fatalf("ip %s: %v", words, err)
		}
	}
	if out := add("tun0,address=10.7.0.5/24"); !strings.Contains(out, "tun0, opened") {
		t.Errorf("%s", out)
	}
	send("10.7.0.5")
	out, err := exec.Command("vmnet", "switch", "add-port", sw.socket, "--netns", host.Path(), "--tun",
		"tun0,address=10.7.0.5/24,name=again").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process has the tun tun0 open") {
		t.Errorf("twice: %v: %s", err, out)
	}
	sw.end()
	if _, err := hostLinks.LinkByName("tun0"); err != nil {
		t.Errorf("the persistent tun is gone: %v", err)
	}
}
