package tapmgr_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/bridge"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLiveHiddenMacvtapCounts: of a user's macvtap no process has a file open; they wait in a
// socket's queue. It counts as the user's, and is listed, until it is gone.
func TestLiveHiddenMacvtapCounts(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.Host().Owner = user
	vm := h.name("P3")
	l := h.launch(macvtapSpec(vm, "net0"), macvtapSpec(vm, "net1"))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(pair[0]), "near"), os.NewFile(uintptr(pair[1]), "far")
	defer near.Close()
	defer far.Close()
	// Of the first the queues are hidden, of the second the netns, whose mount would do as well.
	hide := func(f *os.File) {
		t.Helper()
		if err := unix.Sendmsg(int(near.Fd()), []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	hide(l.NICs[0].Files.Queues[0])
	hide(l.NICs[1].Files.Netns)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	nics, err := h.ListAll(h.context(10*time.Second), vm)
	if err != nil || len(nics) != 2 || nics[0].State != nic.Hidden || nics[1].State != nic.Hidden ||
		nics[0].UID != user {
		t.Errorf("list %+v, %v", nics, err)
	}
	if n, err := h.Host().Owned(user); err != nil || n != 2 {
		t.Errorf("the user owns %d, %v: want 2", n, err)
	}
	if err := errors.Join(near.Close(), far.Close()); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 30*time.Second, "both are gone", func() bool {
		n, err := h.Host().Owned(user)
		return err == nil && n == 0
	})
	if nics, err := h.ListAll(h.context(10*time.Second), ""); err != nil || len(nics) != 0 {
		t.Errorf("list %+v, %v", nics, err)
	}
}

// TestNamedTapHasAnIndexThatNobodyGuesses: libvirt opens it by its name, and takes it for a
// macvtap where somebody else's is at the same index. That it is not counted does not keep it from
// being put back on a bridge that is made again.
func TestNamedTapHasAnIndexThatNobodyGuesses(t *testing.T) {
	h := newUserHost(t)
	seen := map[int]bool{}
	for _, nic := range []string{"net0", "net1", "net2"} {
		if err := h.prepared("web", nic); err != nil {
			t.Fatal(err)
		}
		l := h.link("web-" + nic)
		if l.Index < 1<<20 || seen[l.Index-1] || seen[l.Index+1] {
			t.Errorf("%s has index %d", l.Name, l.Index)
		}
		seen[l.Index] = true
	}
	back := func(want int) {
		t.Helper()
		actions, err := h.Host().PutBack("br0")
		if err != nil || len(actions) != want {
			t.Errorf("put back %+v, %v: want %d", actions, err, want)
		}
	}
	h.ip("link", "del", "br0")
	h.bridge(bridge.Config{Name: "br0"})
	back(3)
	h.ip("link", "set", "web-net0", "nomaster") // somebody has taken it off this bridge
	back(0)
}
