package vswitch_test

import (
	"errors"
	"testing"
	"time"

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
	// The next port waits for a copy of the claim that is about to be closed.
	closed := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { closed <- w.Close() })
	next := openPacket(t, h, "lan0")
	if err := errors.Join(<-closed, next.Close()); err != nil {
		t.Fatal(err)
	}
	is(false)
}
