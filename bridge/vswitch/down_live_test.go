package vswitch_test

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// TestLiveDownPortIsForgotten moves a station silently from a port whose device goes down, loses
// its carrier or is closed to another port. Frames to the station must be flooded at once, as by
// the kernel's bridge.
func TestLiveDownPortIsForgotten(t *testing.T) {
	sw := newSwitch(t)
	tapDown, tapPort := followedTap(t, sw, 0, vport.Config{})
	tapDown.up(1500)
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	outside.up(1500)
	packetPort := addPort(t, sw, "packet", openPacket(t, middle, "lan0"), vport.Config{})
	unfollowed := tapHost(t, sw, 3, 1, vport.Config{})
	unfollowedPort := sw.Ports()[1]
	for _, p := range []*vswitch.Port{tapPort, packetPort} {
		nstest.Eventually(t, 20*time.Second, "the port is up", func() bool { return p.State() == vport.StateUp })
	}

	w, speaker, err := vswitch.SocketPair(1500)
	if err != nil {
		t.Fatal(err)
	}
	defer speaker.Close()
	addPort(t, sw, "speaker", w, vport.Config{})
	w, listener, err := vswitch.SocketPair(1500)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	addPort(t, sw, "listener", w, vport.Config{})
	hears := hearing(t, listener)

	station, self := net.HardwareAddr{2, 9, 9, 9, 9, 1}, net.HardwareAddr{2, 9, 9, 9, 9, 2}
	key := vswitch.KeyOf(station, 1)
	down := func(h *host) func() error {
		return func() error { return h.nl.LinkSetDown(h.link(h.device)) }
	}
	up := func(h *host) func() error {
		return func() error { return h.nl.LinkSetUp(h.link(h.device)) }
	}
	for name, c := range map[string]struct {
		port *vswitch.Port
		from *host // its frame shows that the station is behind it
		down func() error
		up   func() error
	}{
		"tap down":     {tapPort, tapDown, down(tapDown), up(tapDown)},
		"card down":    {packetPort, outside, down(middle), up(middle)},
		"no carrier":   {packetPort, outside, down(outside), up(outside)},
		"not followed": {unfollowedPort, unfollowed, down(unfollowed), up(unfollowed)},
	} {
		nstest.Eventually(t, 20*time.Second, name+": the station is learned", func() bool {
			c.from.say(station)
			return sw.FDB().Lookup(key) == c.port.PortIndex()
		})
		if err := c.down(); err != nil {
			t.Fatal(err)
		}
		if c.port != unfollowedPort {
			nstest.Eventually(t, 20*time.Second, name+": the port is down", func() bool {
				return c.port.State() == vport.StateDown && c.port.Stats().State == vport.StateDown &&
					sw.FDB().Lookup(key) == -1
			})
		}
		nstest.Eventually(t, 20*time.Second, name+": frames to the station are flooded", func() bool {
			_, _ = speaker.Write(append(append(append([]byte{}, station...), self...), make([]byte, 48)...))
			return hears(station)
		})
		if err := c.up(); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, 20*time.Second, name+": the port is up again", func() bool {
			return c.port.State() == vport.StateUp
		})
		for hears(station) {
		}
	}
}

// say sends a broadcast with that source address from the host's device.
func (h *host) say(src net.HardwareAddr) {
	h.t.Helper()
	if err := h.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		f := append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src...), make([]byte, 48)...)
		f[12], f[13] = 0x88, 0xb5
		// The device may be down.
		_ = unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: h.link(h.device).Attrs().Index})
		return nil
	}); err != nil {
		h.t.Fatal(err)
	}
}

// hearing reports whether a guest's end of a socket has received a frame to that address so far.
func hearing(t *testing.T, f *os.File) func(dst net.HardwareAddr) bool {
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	return func(dst net.HardwareAddr) bool {
		for {
			n, err := unix.Read(fd, b)
			if err != nil {
				return false
			}
			if n >= 6 && string(b[:6]) == string(dst) {
				return true
			}
		}
	}
}
