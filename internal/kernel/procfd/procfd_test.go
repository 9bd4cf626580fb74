package procfd_test

import (
	"os"
	"slices"
	"testing"

	"vmnet/internal/kernel/procfd"
)

func TestRealUID(t *testing.T) {
	if uid, err := procfd.RealUID(os.Getpid()); err != nil || uid != os.Getuid() {
		t.Errorf("own uid %d, %v: want %d", uid, err, os.Getuid())
	}
	if uid, err := procfd.RealUID(-1); err == nil {
		t.Errorf("process -1 has uid %d", uid)
	}
}

func TestPIDs(t *testing.T) {
	if pids, err := procfd.PIDs(); err != nil || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("got %v, %v: want this process among them", pids, err)
	}
}
