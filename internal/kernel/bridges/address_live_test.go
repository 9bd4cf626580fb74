package bridges_test

import (
	"net"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
)

// TestLiveABridgeKeepsItsAddress: a bridge without a set address keeps the one that it has while
// guests come and go, and one with an uplink has the uplink's.
func TestLiveABridgeKeepsItsAddress(t *testing.T) {
	ns, c := open(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plain := func(name string) *rtnl.Link {
		t.Helper()
		must(c.Create("bridge", rtnl.Name(name)))
		br, err := c.Link(name)
		must(err)
		return br
	}
	address := func(br *rtnl.Link) string {
		t.Helper()
		now, err := c.LinkByIndex(br.Index)
		must(err)
		return now.MAC.String()
	}
	mac := func(last byte) rtnl.Attr { return rtnl.MAC(net.HardwareAddr{0xfe, 0, 0, 0, 0, last}) }

	br := plain("br0")
	before := address(br)
	first, firstLink := tap(t, ns, c, "t1")
	must(c.Set(firstLink.Index, mac(2)))
	must(bridges.AddPort(c, br, firstLink, brport.Settings{}))
	second, secondLink := tap(t, ns, c, "t0")
	must(c.Set(secondLink.Index, mac(1)))
	must(bridges.AddPort(c, br, secondLink, brport.Settings{Isolated: true}))
	if got := address(br); got != before {
		t.Errorf("address %s with two guests, was %s", got, before)
	}
	must(second.Close())
	must(first.Close())
	if got := address(br); got != before {
		t.Errorf("address %s without them, was %s", got, before)
	}

	// A bridge that had a guest before.
	br = plain("br1")
	old, oldLink := tap(t, ns, c, "t2")
	must(c.Set(oldLink.Index, mac(3), rtnl.Master(br.Index)))
	before = address(br)
	_, newLink := tap(t, ns, c, "t3")
	must(c.Set(newLink.Index, mac(4)))
	must(bridges.AddPort(c, br, newLink, brport.Settings{}))
	must(old.Close())
	if got := address(br); got != before || before != "fe:00:00:00:00:03" {
		t.Errorf("address %s without the guest that had it, was %s", got, before)
	}

	// A bridge that has lost its last port: the kernel leaves it no address.
	br = plain("br3")
	last, lastLink := tap(t, ns, c, "t5")
	must(c.Set(lastLink.Index, rtnl.Master(br.Index)))
	must(last.Close())
	if got := address(br); got != "00:00:00:00:00:00" {
		t.Fatalf("address %s without a port: the test is wrong", got)
	}
	_, next := tap(t, ns, c, "t6")
	br, err := c.Link("br3")
	must(err)
	must(bridges.AddPort(c, br, next, brport.Settings{}))
	if got, want := address(br), bridges.DefaultMAC("br3").String(); got != want {
		t.Errorf("address %s after it had none, want %s", got, want)
	}

	br = plain("br2")
	card := net.HardwareAddr{0, 1, 2, 3, 4, 5}
	must(c.Create("ifb", rtnl.Name("eth0"), rtnl.MAC(card), rtnl.Master(br.Index)))
	_, guest := tap(t, ns, c, "t4")
	must(c.Set(guest.Index, mac(5)))
	must(bridges.AddPort(c, br, guest, brport.Settings{}))
	if got := address(br); got != card.String() {
		t.Errorf("address %s with an uplink, want its %s", got, card)
	}
	eth0, err := c.Link("eth0")
	must(err)
	must(c.Delete(eth0.Index))
	if got := address(br); got == card.String() {
		t.Error("the uplink's address was set, so that the next uplink could not replace it")
	}
}
