package procfd_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// tree makes directories, files and links of all kinds in dir.
func tree(t *testing.T, dir string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
		os.WriteFile(filepath.Join(dir, "a/f"), nil, 0o600))
	for name, target := range map[string]string{
		"a/abs": "/a/b", "a/rel": "../a/b", "a/out": "../../../..", "a/b/loop": "loop", "a/b/file": "../f",
		"up": "..", "root": "/", "long": "a/./b//../b/", "dangling": "none/x", "dir": "a/b/", "notdir": "a/f/",
	} {
		err = errors.Join(err, os.Symlink(target, filepath.Join(dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFollow follows paths as the kernel does, to the same file or the same error.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir)
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd) //nolint:errcheck // a test's
	words := []string{
		"a", "b", "f", "abs", "rel", "out", "loop", "file", "up", "root", "long", "dangling", "dir", "notdir",
		"..", ".", "", "none", "tmp", strings.TrimPrefix(dir, "/"),
	}
	flags := []uint64{
		unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS, unix.RESOLVE_NO_MAGICLINKS, unix.RESOLVE_NO_SYMLINKS,
	}
	random := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 20000 {
		names := make([]string, 1+random.IntN(5))
		for i := range names {
			names[i] = words[random.IntN(len(words))]
		}
		path, resolve := strings.Join(names, "/"), flags[random.IntN(len(flags))]
		want, wantErr := unix.Openat2(dirfd, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
		got, err := procfd.Follow(dirfd, path, resolve)
		if !errors.Is(err, wantErr) || err == nil && identity(t, got) != identity(t, want) {
			t.Fatalf("%q with %#x: %d, %v; the kernel: %d, %v", path, resolve, got, err, want, wantErr)
		}
		if err == nil {
			found++
			_, _ = unix.Close(got), unix.Close(want)
		}
	}
	if found < 1000 {
		t.Errorf("%d files were found", found)
	}
}

func identity(t *testing.T, fd int) [2]uint64 {
	t.Helper()
	st, err := procfd.StatFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	return [2]uint64{st.Dev, st.Ino}
}

// TestFollowRefusesProcfs: what a link of procfs means is not what it reads.
func TestFollowRefusesProcfs(t *testing.T) {
	for _, path := range []string{"/proc/self/root/etc", "/proc/self/fd/0"} {
		if fd, err := procfd.Follow(unix.AT_FDCWD, path, unix.RESOLVE_NO_MAGICLINKS); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %d, %v", path, fd, err)
		}
	}
}
