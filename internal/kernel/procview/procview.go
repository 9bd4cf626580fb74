// Package procview finds the file that a process means by a path, and the sockets on which a
// process listens. The paths may be those of any user and lead to any file, so it opens files only
// in ways that have no effects.
package procview

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// Locate returns the files that a process may have meant by a path when it used the path, the most
// likely first. They are references (O_PATH), which the caller closes. Locate looks an absolute
// path up in the root directory of the process, and in that of the caller, in case the process has
// called chroot(2) since. It looks a relative path up in the working directory of the process, and
// in the one in which it was started, in case it has become a daemon since. If there is no such
// file, the error matches fs.ErrNotExist with errors.Is. If a file system does not answer, Locate
// returns when ctx ends.
func Locate(ctx context.Context, pid int, path string) ([]*os.File, error) {
	type result struct {
		files []*os.File
		err   error
	}
	done := make(chan result, 1)
	go func() {
		files, err := locate(pid, path)
		done <- result{files, err}
	}()
	select {
	case r := <-done:
		return r.files, r.err
	case <-ctx.Done():
		go func() { closeAll((<-done).files) }()
		return nil, fmt.Errorf("look up %s of process %d: %w", path, pid, context.Cause(ctx))
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func locate(pid int, path string) (files []*os.File, err error) {
	proc := fmt.Sprintf("/proc/%d", pid)
	seen := map[[2]uint64]bool{}
	var errs []error
	try := func(dir, path string, how uint64) {
		f, err := openIn(dir, path, how)
		if err != nil {
			errs = append(errs, err)
			return
		}
		if id, err := identity(f); err != nil || seen[id] {
			_ = f.Close()
		} else {
			seen[id] = true
			files = append(files, f)
		}
	}
	if filepath.IsAbs(path) {
		try(proc+"/root", path, unix.RESOLVE_IN_ROOT)
		try("/", path, 0)
	} else {
		try(proc+"/cwd", path, 0)
		if dir := startedIn(proc); filepath.IsAbs(dir) {
			try(proc+"/root", filepath.Join(dir, path), unix.RESOLVE_IN_ROOT)
			try("/", filepath.Join(dir, path), 0)
		}
	}
	if len(files) == 0 {
		return nil, errors.Join(errs...)
	}
	return files, nil
}

// openIn opens a path below a directory. how are flags of openat2(2), RESOLVE_*.
func openIn(dir, path string, how uint64) (*os.File, error) {
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(dirfd) }()
	fd, err := procfd.ReferIn(dirfd, path, how|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir, path), Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func identity(f *os.File) (id [2]uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id, err
	}
	return [2]uint64{st.Dev, st.Ino}, nil
}

// maxEnviron bounds in bytes how much of an environment is read.
const maxEnviron = 256 << 10

// startedIn returns the working directory of the shell that started a process, or "" if it is
// unknown.
func startedIn(proc string) string {
	f, err := os.Open(proc + "/environ")
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxEnviron))
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if dir, ok := strings.CutPrefix(entry, "PWD="); ok {
			return dir
		}
	}
	return ""
}

// Address returns a path by which to connect(2) to the socket f, which must stay open. Unlike the
// socket's own path, it always fits into a sockaddr_un.
func Address(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Read returns the contents of the regular file, of at most most bytes, that a process means by a
// path. It refuses any other file without opening it.
func Read(ctx context.Context, pid int, path string, most int64) ([]byte, error) {
	files, err := Locate(ctx, pid, path)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	info, err := files[0].Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, most)
	}
	f, err := os.OpenFile(Address(files[0]), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
