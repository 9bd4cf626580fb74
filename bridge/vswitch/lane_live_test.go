package vswitch_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// lanes returns the names of the taps that the switch has made in a network namespace.
func lanes(t *testing.T, h *host) (names []string) {
	t.Helper()
	links, err := h.nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "vmnet-lane") {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// TestLiveLane checks that each veth device has a lane, that a tap has none, and that a lane is
// removed with its port.
func TestLiveLane(t *testing.T) {
	middle, outside, other := newHost(t, 0, "lan0"), newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	join(t, outside, middle, "p1", 1500)
	join(t, other, middle, "p2", 1500)
	tap, err := tun.Create(middle.ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	sw := newSwitch(t)
	for _, device := range []string{"p1", "p2", "tap0"} {
		addPort(t, sw, device, openPacket(t, middle, device), vport.Config{})
	}
	if got := lanes(t, middle); !slices.Equal(got, []string{"vmnet-lane0", "vmnet-lane1"}) {
		t.Errorf("two veth devices and a tap have the lanes %v", got)
	}
	// Frames that the host itself sends on the tap must not enter the switch; it must send none.
	outside.up(1500)
	other.up(1500)
	tcp(t, outside, other, 1<<20)
	for _, p := range sw.Ports() {
		if st := p.Stats(); len(st.Queues) == 2 && st.Queues[1].RxFrames != 0 {
			t.Errorf("%s: %d frames entered by the lane", p.Name(), st.Queues[1].RxFrames)
		}
	}
	if err := sw.RemovePort("p1"); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "the lane is removed with its port", func() bool {
		return len(lanes(t, middle)) == 1
	})
	addPort(t, sw, "p1", openPacket(t, middle, "p1"), vport.Config{})
	tcp(t, other, outside, 1<<20)
	for _, p := range sw.Ports() {
		if err := sw.RemovePort(p.Name()); err != nil {
			t.Fatal(err)
		}
	}
	nstest.Eventually(t, 20*time.Second, "all lanes are gone", func() bool { return len(lanes(t, middle)) == 0 })
}
