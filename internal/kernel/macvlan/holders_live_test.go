package macvlan_test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"vmnet/internal/kernel/macvlan"
)

// TestLiveCountOfAUser counts devices that a user's processes hold only by their queues.
func TestLiveCountOfAUser(t *testing.T) {
	const uid, other = 54321, 54322
	w := newWire(t)
	var queues []*os.File
	for _, mac := range []byte{1, 2} {
		cfg := w.config()
		cfg.MAC = append(guestMAC[:5:5], mac)
		d := w.create(cfg)
		for range 2 {
			if err := d.OpenQueue(); err != nil {
				t.Fatal(err)
			}
		}
		queues = append(queues, d.Queues()...)
	}
	counts := func(of, want int) {
		t.Helper()
		if n, err := macvlan.CountOf(of); err != nil || n != want {
			t.Errorf("uid %d has %d, %v: want %d", of, n, err, want)
		}
	}
	counts(uid, 0)
	hold(t, uid, queues[0], queues[1])
	counts(uid, 1)
	hold(t, uid, queues[1])
	counts(uid, 1)
	hold(t, uid, queues[3])
	counts(uid, 2)
	counts(other, 0)
}

// hold starts a process of a user that has only these files of this process open.
func hold(t *testing.T, uid uint32, files ...*os.File) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
}
