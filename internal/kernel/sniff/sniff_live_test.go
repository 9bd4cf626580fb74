package sniff_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/sniff"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestLiveFrames: frames of both directions arrive whole, tagged ones with their tag, and those of
// no other link.
func TestLiveFrames(t *testing.T) {
	ns := nstest.New(t)
	h := nstest.Handle(t, ns)
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a0"}, PeerName: "a1"},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "b0"}, PeerName: "b1"},
	} {
		if err := h.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	index := func(name string) int {
		l, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Index
	}
	a0, a1, b0 := index("a0"), index("a1"), index("b0")
	index("b1")
	f, err := sniff.Open(ns, a0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := sniff.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	send := func(index int, tail string) {
		frame := append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02"), tail...)
		if _, err := nstest.PacketSocket(t, ns, index).Write(append(frame, make([]byte, 60)...)); err != nil {
			t.Fatal(err)
		}
	}
	send(b0, "\x88\xb5other")
	send(a0, "\x88\xb5sent")
	send(a1, "\x81\x00\x00\x07\x88\xb5tagged")
	if err := r.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		sent bool
		tail string
	}{{true, "\x88\xb5sent"}, {false, "\x81\x00\x00\x07\x88\xb5tagged"}}
	for len(want) > 0 {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if got.Data[0] != 2 {
			continue // the kernel sends frames too
		}
		w := want[0]
		if want = want[1:]; got.Sent != w.sent || string(got.Data[12:12+len(w.tail)]) != w.tail ||
			got.Length != 12+len(w.tail)+60 || len(got.Data) != got.Length || time.Since(got.Time) > time.Hour {
			t.Errorf("%+v", got)
		}
	}
	if n := r.Dropped(); n != 0 {
		t.Errorf("%d frames were dropped", n)
	}
	if err := r.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if r.Gone() {
		t.Error("the link is there")
	}
	if l, err := h.LinkByName("a0"); err != nil || h.LinkSetDown(l) != nil || r.Gone() || h.LinkDel(l) != nil {
		t.Error("a link that is down is no deleted one", err)
	}
	nstest.Eventually(t, 20*time.Second, "the link has gone", r.Gone)
}
