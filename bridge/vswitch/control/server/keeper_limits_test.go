package server

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
)

// TestKeptWithFewFiles goes on with ports for which the process may not open enough files. Those
// stay in the store, and the next process has them. A port takes two more files than it had in the
// store, as when it was added.
func TestKeptWithFewFiles(t *testing.T) {
	const ports = 8
	const enough = spareFiles + 2*ports - (ports + 1) // the descriptions are closed
	path, _, m := keeping(t)
	c := client(t, path)
	for n := range ports {
		guest(t, c, control.Port{Name: fmt.Sprintf("p%d", n)})
	}
	left := m.copied(t)
	before := left.names()
	for _, room := range []int{enough - ports, enough + 2} {
		files := left.copied(t).files
		sw := vswitch.New(vswitch.Config{})
		s, n := New(sw, control.Info{}), &noted{}
		s.KeepIn(left, 0, n.note)
		restore := leaveRoom(t, room)
		taking, err := s.Kept(files)
		if err == nil {
			err = taking.Begin()
		}
		restore()
		s.ports.keeper.await(patience)
		all := len(s.Ports())
		if goes := room > enough; goes != (err == nil && all == ports) || !goes && !errors.Is(err, unix.EMFILE) {
			t.Errorf("room for %d files: %d ports, %v", room, all, err)
		}
		if got := left.names(); !slices.Equal(got, before) {
			t.Errorf("%q, before %q", got, before)
		}
		s.LeaveStored()
		taking.Close()
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// leaveRoom lets the process open so many more files, until restore is called.
func leaveRoom(t *testing.T, files int) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for range files {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	few := was
	few.Cur = uint64(slices.Max(fds) + 1)
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	restore = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	return restore
}

// TestStoredNames has as many ports as a store has room for in vmnet-switch@.service: their names
// fit into a string of the environment.
func TestStoredNames(t *testing.T) {
	const (
		files   = 4096
		longest = 128 << 10
	)
	all := ""
	for id := 1; len(all) < longest && id <= files/2; id++ {
		all += fileName(id, 0) + ":" + describedBy(id, 1<<30) + ":"
	}
	if len("LISTEN_FDNAMES=")+len(all) >= longest {
		t.Errorf("%d bytes", len(all))
	}
	for _, name := range []string{fileName(4095, 17), describedBy(4095, 1<<20), sessionName(4095, -1)} {
		id, version, ok := parseName(name)
		if !ok || id != 4095 || (version == 1<<20) != (name == describedBy(4095, 1<<20)) {
			t.Errorf("%s: %d, %d, %v", name, id, version, ok)
		}
	}
	for _, name := range []string{"", "whole", "1", "1.", ".1", "0.1", "x.1", "1\n.1", "-1.1", "1.-1", "fffffffff.1"} {
		if id, version, ok := parseName(name); ok {
			t.Errorf("%q: %d, %d", name, id, version)
		}
	}
}
