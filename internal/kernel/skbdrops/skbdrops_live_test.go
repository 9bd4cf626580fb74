package skbdrops

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// within bounds what takes milliseconds.
const within = 20 * time.Second

// cable returns a namespace with two links that are connected to each other, and their indexes.
func cable(t *testing.T) (ns *netns.NS, near, far int) {
	t.Helper()
	ns = nstest.New(t)
	err := ns.Do(func() error {
		return exec.Command("sh", "-ec", "ip link add near type veth peer name far; "+
			"ip link set near up addrgenmode none; ip link set far up addrgenmode none").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	h := nstest.Handle(t, ns)
	for name, index := range map[string]*int{"near": &near, "far": &far} {
		l, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		*index = l.Attrs().Index
	}
	return ns, near, far
}

// TestLiveDrops: a frame of a protocol that nobody takes is counted where it arrives, with its
// reason and place, and one of the same link's number elsewhere is not.
func TestLiveDrops(t *testing.T) {
	nstest.RequireRoot(t)
	ns, near, far := cable(t)
	elsewhere, near2, far2 := cable(t)
	if far != far2 {
		t.Fatalf("links %d and %d: want one number in both namespaces", far, far2)
	}
	w, err := Open(ns, []int{near, far})
	if errors.Is(err, ErrNotSupported) {
		nstest.Require(t, "drop reasons", false, "Linux 5.17 or later with CONFIG_DEBUG_INFO_BTF")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	// An experimental EtherType (IEEE 802).
	frame := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 50)...)
	for range 3 {
		if err := announce.Send(ns, near, frame); err != nil {
			t.Fatal(err)
		}
		if err := announce.Send(elsewhere, near2, frame); err != nil {
			t.Fatal(err)
		}
	}
	want := Drop{Link: far, Protocol: 0x88b5, Reason: "UNHANDLED_PROTO", Count: 3}
	var got []Drop
	nstest.Eventually(t, within, "three drops are counted", func() bool {
		if got, err = w.Drops(); err != nil {
			t.Fatal(err)
		}
		return len(got) > 0 && got[0].Count >= 3
	})
	if len(got) != 1 || got[0].Place == "" {
		t.Fatalf("drops %+v", got)
	}
	t.Logf("%+v", got[0])
	if got[0].Place = ""; got[0] != want {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
}

// TestTooManyLinks: the program stays small.
func TestTooManyLinks(t *testing.T) {
	if w, err := Open(nil, make([]int, MaxLinks+1)); err == nil {
		t.Error("no error")
		_ = w.Close()
	}
}
