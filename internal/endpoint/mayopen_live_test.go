package endpoint

import (
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

func TestLiveMayOpenPacketChangesNothing(t *testing.T) {
	ns := nstest.New(t)
	for range 2 {
		if err := MayOpenPacket(ns); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return // the second success is all that can be checked
	}
	var out []byte
	err := ns.Do(func() (err error) { out, err = exec.Command("nft", "list", "tables").CombinedOutput(); return err })
	if err != nil || strings.TrimSpace(string(out)) != "" {
		t.Errorf("%s, %v: want no table", out, err)
	}
}

func TestLiveMayOpenPacketWithoutPrivilege(t *testing.T) {
	ns := nstest.New(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: its capabilities are changed
		result <- without(1<<unix.CAP_NET_ADMIN, func() error { return MayOpenPacket(ns) })
	}()
	if err := <-result; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "needs CAP_NET_ADMIN") {
		t.Error(err)
	}
}

// without runs do on this thread without some of the effective capabilities.
func without(missing uint32, do func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= missing
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return err
	}
	return do()
}
