package vswitch

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/announce"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// lockedTo is a port's settings for one address.
func lockedTo(n byte, down bool) vport.Config {
	return vport.Config{
		MACs: []net.HardwareAddr{mac(n)}, Down: down,
		Security: portsec.Config{Checks: portsec.MAC, MAC: mac(n)},
	}
}

// TestDownPort has two ports for one guest, which moves from was to is: the port that is down gets
// no frame, passes none, and keeps no address from the other one, until the settings change.
func TestDownPort(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"near": {}, "was": lockedTo(1, false), "is": lockedTo(1, true)})
	from := etherFrame(all, mac(1), nil, 46)
	to := etherFrame(mac(1), mac(2), nil, 46)
	for _, tt := range []struct{ where, silent string }{{"was", "is"}, {"is", "was"}} {
		if tt.where == "is" {
			for _, name := range []string{"was", "is"} {
				if err := l.sw.SetPort(name, lockedTo(1, name == "was")); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := l.port(tt.silent).Dropped(Down)
		if got := names(l.send(tt.silent, from)); len(got) > 0 {
			t.Errorf("%s is down, and its frame reaches %q", tt.silent, got)
		}
		if n := l.port(tt.silent).Dropped(Down); n != before+1 || l.port(tt.silent).State() != vport.StateDown {
			t.Errorf("%s is %s, and dropped %d frames", tt.silent, l.port(tt.silent).State(), n-before)
		}
		if got := names(l.send(tt.where, from)); !slices.Equal(got, []string{"near"}) {
			t.Errorf("the guest at %s reaches %q", tt.where, got)
		}
		for _, f := range [][]byte{to, etherFrame(all, mac(2), nil, 46), etherFrame(mac(9), mac(2), nil, 46)} {
			if got := names(l.send("near", f)); !slices.Equal(got, []string{tt.where}) {
				t.Errorf("a frame to %x reaches %q, and the guest is at %s", f[:6], got, tt.where)
			}
		}
		want := []string{"near 02@1", tt.where + " 01@1 static"}
		slices.Sort(want)
		if got := l.known(); !slices.Equal(got, want) {
			t.Errorf("the FDB has %q, want %q", got, want)
		}
	}
	if err := l.sw.SetPort("was", lockedTo(1, false)); err == nil {
		t.Error("both ports are locked to the address")
	}
}

// TestAnnounce: frames that the switch is given reach all that the guest's own would, and no
// further.
func TestAnnounce(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{
		"guest": access(10), "other": access(11), "trunk": trunkAll(0), "was": access(10),
	})
	l.send("was", etherFrame(all, mac(1), nil, 46))
	l.stations["trunk"].read()
	frames := announce.Frames(mac(1), nil)
	if err := l.sw.Announce("guest", frames); err != nil {
		t.Fatal(err)
	}
	got := l.stations["trunk"].read()
	if want := announce.Tagged(frames[0], 10); !bytes.Equal(got, want) {
		t.Errorf("the trunk gets %x, want %x", got, want)
	}
	if got := l.stations["other"].read(); got != nil {
		t.Errorf("another VLAN gets %x", got)
	}
	if got := l.known(); !slices.Contains(got, "guest 01@:") { // VLAN 10, as known writes it
		t.Errorf("the FDB has %q", got)
	}
	if err := l.sw.SetPort("guest", lockedTo(7, false)); err != nil {
		t.Fatal(err)
	}
	if err := l.sw.Announce("guest", frames); err != nil || l.port("guest").Dropped(Spoofed) != 1 {
		t.Errorf("another address: %v, %d", err, l.port("guest").Dropped(Spoofed))
	}
	long := make([]byte, maxAnnouncement+1)
	for want, list := range map[string][][]byte{
		"0 frames": nil, "129 frames": make([][]byte, MaxAnnounced+1), "257 bytes": {long},
	} {
		err := l.sw.Announce("guest", list)
		if !errors.Is(err, brport.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := l.sw.Announce("guest", [][]byte{nil, {1}}); err != nil || l.port("guest").Dropped(Short) != 2 {
		t.Errorf("short frames: %v", err)
	}
	if err := l.sw.Announce("nobody", frames); !errors.Is(err, ErrNoPort) {
		t.Error(err)
	}
}

// TestVhostUserArrives: a frontend whose guest has arrived, and does not announce itself, has the
// switch announce it.
func TestVhostUserArrives(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"near": {}})
	g := l.guest("guest", vport.Config{}, frontend.Config{})
	if err := g.Tell(frontend.SendRARP, append(mac(5), 0, 0)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	nstest.Eventually(t, soon, "it is announced", func() bool { got = l.stations["near"].read(); return got != nil })
	if want := announce.Frames(mac(5), nil)[0]; !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := l.known(); !slices.Equal(got, []string{"guest 05@1"}) {
		t.Errorf("the FDB has %q", got)
	}
}
