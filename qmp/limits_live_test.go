package qmp

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// TestLivePlugIntoAJail: a QEMU that does not see its ROMs any more gets a NIC without one.
func TestLivePlugIntoAJail(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc", "-chroot", t.TempDir()).dial(t)
	ctx := within(t, 30*time.Second)
	queues := newTap(t, ns, "vj0", 1)
	if err := c.Plug(ctx, NIC{ID: "n", Queues: 1}, &Files{Queues: queues}); err != nil {
		t.Fatal(err)
	}
	if rom, err := qomValue(ctx, c, "n", "romfile"); rom != "" || err != nil {
		t.Errorf("romfile is %q, %v", rom, err)
	}
	// What somebody asks for is not replaced.
	err := c.Plug(ctx, NIC{ID: "m", Queues: 1, Options: map[string]string{"romfile": "efi-virtio.rom"}},
		&Files{Queues: newTap(t, ns, "vj1", 1)})
	if !lacksROM(err) || !strings.Contains(err.Error(), "QEMU does not see its ROMs") {
		t.Errorf("a ROM outside of the jail: %v", err)
	}
}

// TestLiveQEMUWithoutRoomForFiles: its own words are of SCM_RIGHTS.
func TestLiveQEMUWithoutRoomForFiles(t *testing.T) {
	ns := nstest.New(t)
	q := startQEMU(t, "pc")
	c := q.dial(t)
	room := uint64(0) // the first number that is free
	for ; ; room++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", q.cmd.Process.Pid, room)); err != nil {
			break
		}
	}
	if err := unix.Prlimit(q.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: room, Max: room}, nil); err != nil {
		t.Fatal(err)
	}
	queues := newTap(t, ns, "vl0", 1)
	err := c.Plug(within(t, 30*time.Second), NIC{ID: "n", Queues: 1}, &Files{Queues: queues})
	closeAll(queues)
	if err == nil || !strings.Contains(err.Error(), "QEMU may open no more files: raise its limit") ||
		strings.Contains(err.Error(), "undo") {
		t.Errorf("got %v", err)
	}
	wantGone(t, ns, "vl0")
}
