package tun_test

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// TestLiveExpire expires taps that are held, one that is not, and one that does not exist.
func TestLiveExpire(t *testing.T) {
	ns := nstest.New(t)
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	there := func() bool {
		_, err := nl.Link("tap0")
		return !errors.Is(err, fs.ErrNotExist)
	}
	gone := func(what string) {
		t.Helper()
		nstest.Eventually(t, 20*time.Second, what+": it goes", func() bool { return !there() })
	}
	for _, multi := range []bool{false, true} {
		persistent := func() *tun.Tap {
			t.Helper()
			tap, err := tun.Create(ns, "tap0", multi)
			if err == nil {
				err = tap.Persist(0)
			}
			if err != nil {
				t.Fatal(err)
			}
			return tap
		}
		if err := persistent().Close(); err != nil || !there() {
			t.Fatalf("not persistent: %v", err)
		}
		if err := tun.Expire(ns, "tap0", multi); err != nil {
			t.Error(err)
		}
		gone("unheld")
		if err := tun.Expire(ns, "tap0", multi); err != nil {
			t.Errorf("not there: %v", err)
		}
		gone("not there")

		tap := persistent()
		err := tun.Expire(ns, "tap0", multi)
		if errors.Is(err, unix.EBUSY) == multi || !there() {
			t.Errorf("held, multi-queue %v: %v, there %v", multi, err, there())
		}
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
		if !multi {
			err = tun.Expire(ns, "tap0", multi)
		}
		gone("not held any more")
		if err != nil {
			t.Error(err)
		}
	}
}

// TestLiveUnpersist clears persistence by a copy of the holder's fd, which must be a queue of that
// tap.
func TestLiveUnpersist(t *testing.T) {
	ns := nstest.New(t)
	inode, err := ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	tap, err := tun.Create(ns, "tap0", false)
	if err == nil {
		err = tap.Persist(0)
	}
	if err != nil {
		t.Fatal(err)
	}
	self := unix.Getpid()
	for _, test := range []struct {
		name  string
		inode uint64
	}{{"tap1", inode}, {"tap0", inode + 1}} {
		if err := tun.Unpersist(self, test.name, test.inode); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s in %d: %v", test.name, test.inode, err)
		}
	}
	if err := tun.Unpersist(self, "tap0", inode); err != nil {
		t.Error(err)
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	nstest.Eventually(t, 20*time.Second, "it goes", func() bool {
		_, err := nl.Link("tap0")
		return errors.Is(err, fs.ErrNotExist)
	})
}
