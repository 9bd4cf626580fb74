package fdpass

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDuplicateFDLeavesTheFileAlone(t *testing.T) {
	r, w, err := os.Pipe() // non-blocking: the poller watches it
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fd, err := DuplicateFD(r)
	if err != nil || fd < 3 {
		t.Fatalf("%d, %v", fd, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v: want O_NONBLOCK", flags, err)
	}
	if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of the fd %#x, %v: want FD_CLOEXEC", flags, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Errorf("the copy goes with the file: %v", err)
	}
	if _, err := DuplicateFD(r); err == nil {
		t.Error("a closed file has a copy")
	}
}
