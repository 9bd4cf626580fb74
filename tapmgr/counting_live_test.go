package tapmgr_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// TestLiveCounting: counters are those of now at each reading, and what has changed is seen at the
// next one: a NIC that comes or goes, and one whose link goes down. A macvtap counts in its own
// netns.
func TestLiveCounting(t *testing.T) {
	nstest.RequireRoot(t) // for the macvtap
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	h.ip("link", "add", "up0", "up", "type", "veth", "peer", "name", "far0")
	h.ip("link", "set", "far0", "up")
	lower := g.spec("net1")
	lower.Bridge, lower.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "up0", Mode: "bridge"}
	h.attach(lower)
	c := h.Counting(tapmgr.Look{Drops: true})
	read := func(id string) *tapmgr.Sighting {
		t.Helper()
		all, err := c.Read(h.context(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(s tapmgr.Sighting) bool { return s.ID == id })
		if i < 0 {
			return nil
		}
		return &all[i]
	}
	for _, place := range []struct{ id, link string }{{"net0", "br0"}, {"net1", "far0"}} {
		l, err := nstest.Handle(t, h.ns).LinkByName(place.link)
		if err != nil {
			t.Fatal(err)
		}
		total := func(s *tapmgr.Sighting) uint64 { // nobody reads: what does not fit is dropped
			return s.Traffic.ToGuest.Packets + s.Traffic.ToGuest.Dropped
		}
		send := func(n int) {
			t.Helper()
			same := slices.Repeat([]netip.Addr{netip.MustParseAddr("10.0.0.9")}, n)
			frames := announce.Frames(l.Attrs().HardwareAddr, same)
			if err := announce.Send(h.ns, l.Attrs().Index, frames...); err != nil {
				t.Fatal(err)
			}
		}
		send(1100) // more than its queue holds
		was := total(read(place.id))
		for range 7 { // more readings than there are between two surveys
			send(3)
			now := total(read(place.id))
			if now <= was {
				t.Fatalf("%s: %d frames, %d before", place.id, now, was)
			}
			was = now
		}
	}
	h.ip("link", "set", g.tap("net0").Name, "down")
	if s := read("net0"); s.State != nic.Down {
		t.Errorf("its link is down: %s", s.State)
	}
	h.attach(g.spec("net2"))
	if read("net2") == nil {
		t.Error("a new NIC is not seen")
	}
	if _, err := g.tryDetach("net2", 20*time.Second, false); err != nil {
		t.Fatal(err)
	}
	if read("net2") != nil {
		t.Error("a NIC that has gone is seen")
	}
}
