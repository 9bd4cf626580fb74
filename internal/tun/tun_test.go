package tun_test

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/tun"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestLiveTapLivesAsLongAsItsQueues(t *testing.T) {
	ns := nstest.New(t)
	nl := nstest.Handle(t, ns)
	tap, err := tun.Create(ns, "tap0", true)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := tap.AddQueue(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nl.LinkByName("tap0"); err != nil {
		t.Errorf("while open: %v", err)
	}
	holders, err := tun.Holders(ns)
	if err != nil {
		t.Fatal(err)
	}
	if h := holders["tap0"]; len(h) != 1 || h[0].PID != os.Getpid() || len(h[0].FDs) != 4 {
		t.Errorf("holders %+v, want this process with 4 queues", holders)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := nl.LinkByName("tap0"); err == nil {
		t.Errorf("after close the link is still there: %+v", l)
	}
	if err := tap.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestLiveCreateIsExclusive(t *testing.T) {
	ns := nstest.New(t)
	tap, err := tun.Create(ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if _, err := tun.Create(ns, "tap0", false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("name taken: got %v, want EBUSY", err)
	}
	if err := tap.AddQueue(); err == nil {
		t.Error("a second queue of a single-queue tap was opened")
	}
}

func TestLiveHoldersTellNetnsApart(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	open := func(ns *netns.NS) *tun.Tap {
		t.Helper()
		tap, err := tun.Create(ns, "same", false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tap.Close() })
		return tap
	}
	open(a)
	open(b)
	for _, ns := range []*netns.NS{a, b} {
		holders, err := tun.Holders(ns)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(1, len(holders["same"])); diff != "" || len(holders["same"][0].FDs) != 1 {
			t.Errorf("holders %+v, want one fd in one process", holders)
		}
	}
}
