package rtnl

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

func follow(t *testing.T, ns *netns.NS, name string) *Follower {
	t.Helper()
	f, err := FollowFile(ns)
	if err != nil {
		t.Fatal(err)
	}
	w, err := Follow(f, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// until waits for a wanted state.
func (w *Follower) until(t *testing.T, what string, wanted func(LinkState) bool) {
	t.Helper()
	stuck := time.AfterFunc(20*time.Second, func() { _ = w.Close() })
	defer stuck.Stop()
	for !wanted(w.State()) {
		if _, err := w.Next(); err != nil {
			t.Fatalf("%s: %v; last %+v", what, err, w.State())
		}
	}
}

func TestLiveFollow(t *testing.T) {
	first, second := nstest.New(t), nstest.New(t)
	a, b := nstest.Handle(t, first), nstest.Handle(t, second)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	veth := func(name, peer string, index int) netlink.Link {
		return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: peer}
	}
	must(a.LinkAdd(veth("d0", "peer", 0)))
	peer, err := a.LinkByName("peer")
	must(err)
	must(a.LinkSetUp(peer))
	link, err := a.LinkByName("d0")
	must(err)
	w := follow(t, first, "d0")
	if s := w.State(); s.Index != link.Attrs().Index || s.MTU != 1500 || s.Up ||
		string(s.MAC) != string(link.Attrs().HardwareAddr) {
		t.Errorf("at first: %+v", s)
	}
	must(a.LinkSetUp(link))
	w.until(t, "up", func(s LinkState) bool { return s.Up && s.Carrier })
	must(a.LinkSetMTU(link, 9000))
	w.until(t, "MTU", func(s LinkState) bool { return s.MTU == 9000 && s.Up })
	must(a.LinkSetDown(link))
	w.until(t, "down", func(s LinkState) bool { return !s.Up })
	must(a.LinkSetName(link, "d1"))
	w.until(t, "renamed", func(s LinkState) bool { return s.Name == "d1" })

	// In the other netns its index is taken, so that it gets a new one there.
	must(b.LinkAdd(veth("same-index", "its-peer", link.Attrs().Index)))
	must(a.LinkSetNsFd(link, int(second.Handle())))
	w.until(t, "moved", func(s LinkState) bool { return !s.Up })
	moved, err := b.LinkByName("d1")
	must(err)
	if moved.Attrs().Index == link.Attrs().Index {
		t.Error("it has kept its index: the test is wrong")
	}
	must(b.LinkSetMTU(moved, 1400))
	must(b.LinkSetUp(moved))
	w.until(t, "moved, up", func(s LinkState) bool { return s.Up && !s.Lost && s.MTU == 1400 })
	must(b.LinkSetNsFd(moved, int(first.Handle())))
	back, err := a.LinkByName("d1")
	must(err)
	w.until(t, "back", func(s LinkState) bool { return !s.Up })
	must(a.LinkSetUp(back))
	w.until(t, "back, up", func(s LinkState) bool { return s.Up && !s.Lost })
}

func TestLiveFollowNothing(t *testing.T) {
	f, err := FollowFile(nstest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Follow(f, "d0"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
