package vswitch_test

import (
	"testing"

	"vmnet/internal/endpoint"
)

// TestLiveClaimed looks for a claim before, while and after a switch has the device.
func TestLiveClaimed(t *testing.T) {
	h, other := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
	veth(t, h, other, "lan0", 1500)
	is := func(want bool) {
		t.Helper()
		if claimed, err := endpoint.Claimed(h.ns, "lan0"); err != nil || claimed != want {
			t.Errorf("%v, %v, want %v", claimed, err, want)
		}
	}
	is(false)
	w := openPacket(t, h, "lan0")
	is(true)
	if claimed, err := endpoint.Claimed(other.ns, "lan0"); err != nil || claimed {
		t.Errorf("in another netns: %v, %v", claimed, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	is(false)
}
