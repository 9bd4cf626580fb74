package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/nstest"
)

func TestIsSwitchSocket(t *testing.T) {
	for _, test := range []struct {
		what   string
		change func(top, own, socket string) error
		want   bool
	}{
		{"as it should be", func(_, _, _ string) error { return nil }, true},
		{"others can write to it", func(_, own, _ string) error { return os.Chmod(own, 0o770) }, false},
		{"others can write above it", func(top, _, _ string) error { return os.Chmod(top, 0o777) }, false},
		{"a link", func(_, _, socket string) error {
			return errors.Join(os.Rename(socket, socket+"2"), os.Symlink(socket+"2", socket))
		}, false},
		{"a file", func(_, _, socket string) error {
			return errors.Join(os.Remove(socket), os.WriteFile(socket, nil, 0o600))
		}, false},
		{"a directory that is a link", func(_, own, _ string) error {
			return errors.Join(os.Rename(own, own+"2"), os.Symlink(own+"2", own))
		}, false},
		{"nothing", func(_, own, _ string) error { return os.RemoveAll(own) }, false},
	} {
		top := filepath.Join(t.TempDir(), "vmnet")
		own := filepath.Join(top, "switch", "sw0")
		if err := os.MkdirAll(own, 0o700); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(own, SocketName)
		nstest.LeaveSocket(t, "unixpacket", socket)
		if err := test.change(top, own, socket); err != nil {
			t.Fatal(err)
		}
		if got := isSwitchSocket(socket); got != test.want {
			t.Errorf("%s: %v", test.what, got)
		}
	}
}

// TestRunningIsBounded checks that a user who makes many sockets, or sockets of odd names, hides
// none of another user.
func TestRunningIsBounded(t *testing.T) {
	dir := t.TempDir()
	add := func(user, name string) {
		own := filepath.Join(dir, user, "switch", name)
		if err := os.MkdirAll(own, 0o700); err != nil {
			t.Fatal(err)
		}
		nstest.LeaveSocket(t, "unixpacket", filepath.Join(own, SocketName))
	}
	for i := range 2 * maxOfUser {
		add("a", fmt.Sprint("sw", i))
	}
	add("b", "$(id)")
	add("b", "a\nb")
	add("b", "sw")
	got, err := runningIn(filepath.Join(dir, "*", "switch"))
	if err != nil || len(got) != maxOfUser+1 || got[maxOfUser] != filepath.Join(dir, "b", "switch", "sw", SocketName) {
		t.Errorf("%d, last %q, %v", len(got), got[max(0, len(got)-1):], err)
	}
}
