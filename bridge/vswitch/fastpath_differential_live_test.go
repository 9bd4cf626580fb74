package vswitch_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// packetPairLine is a line whose switch has packet ports on both devices in the middle.
func packetPairLine(t *testing.T, m mtus, off bool) (*line, *vswitch.Switch) {
	t.Helper()
	l, sw := newLine(t, 10, m), vswitch.New(vswitch.Config{NoFastPath: off})
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	join(t, l.inside, l.middle, "p2", m.toInside)
	for _, name := range []string{"p1", "p2"} {
		addPort(t, sw, name, openPacket(t, l.middle, name), vport.Config{})
	}
	return l, sw
}

// TestLiveFastPathCarriesWhatTheBridgeCarries is TestLiveCarriesWhatTheBridgeCarries between two
// packet ports, with the fast path and without. The frames go through again until the switch knows
// their addresses, and the kernel forwards what it can.
func TestLiveFastPathCarriesWhatTheBridgeCarries(t *testing.T) {
	nstest.RequireTCX(t)
	for _, m := range []mtus{{9000, 1500}, {1500, 9000}} {
		list := samples(rand.New(rand.NewPCG(2, uint64(m.toInside))), 600)
		bridges := carriedByBridge(t, m, list)
		for _, off := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v off %v", m, off), func(t *testing.T) {
				l, sw := packetPairLine(t, m, off)
				from, to := l.probes(t, m)
				from.last = bytes.Repeat([]byte{0xff}, 6) // the switch floods marks, which overtake nothing
				answer := slices.Concat(make([]byte, offload.HeaderLen), ours, []byte{0xff, 0xff, 0xff},
					[]byte{2, 0, 0, 0, 0, 9, 0x88, 0xb5}, make([]byte, 46))
				if _, err := unix.Write(to.fd, answer); err != nil {
					t.Fatal(err)
				}
				n := uint64(0)
				for turn := 0; turn < 2 || !off && turn < 10 && n < uint64(len(bridges))*3/4; turn++ {
					was := forwarded(sw)
					compareCarried(t, list, carried(from, to, list), bridges)
					n = forwarded(sw) - was
					t.Logf("the kernel has forwarded %d frames", n)
				}
				if off != (n == 0) || !off && n < uint64(len(bridges))/2 {
					t.Errorf("the kernel has forwarded %d of %d frames", n, len(bridges))
				}
			})
		}
	}
}

// forwarded returns how many frames the kernel has forwarded.
func forwarded(sw *vswitch.Switch) (n uint64) {
	for _, p := range sw.Ports() {
		n += p.Stats().FastPath.Frames
	}
	return n
}
