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

// TestNetnsOfAll: each process is visited once, with the namespace that it is in.
func TestNetnsOfAll(t *testing.T) {
	target, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	own, ok := procfd.NetnsInode(target)
	if !ok {
		t.Fatalf("%q", target)
	}
	seen := map[int]uint64{}
	err = procfd.NetnsOfAll(t.Context(), func(pid int, inode uint64) {
		if seen[pid] != 0 {
			t.Errorf("process %d was visited twice", pid)
		}
		seen[pid] = inode
	})
	if err != nil || seen[os.Getpid()] != own {
		t.Errorf("%v, %v: want this process in %d", seen, err, own)
	}
}

func TestNetnsInode(t *testing.T) {
	for target, want := range map[string]uint64{
		"net:[4026531840]": 4026531840, "net:[1]": 1, "net:[]": 0, "net:[1": 0, "net:[-1]": 0, "mnt:[1]": 0, "": 0,
		"/net:[1]": 0, "net:[99999999999999999999]": 0,
	} {
		if inode, ok := procfd.NetnsInode(target); ok != (want != 0) || ok && inode != want {
			t.Errorf("%q: %d, %v, want %d", target, inode, ok, want)
		}
	}
}
