package procfd

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mostRead bounds what Read returns, in bytes.
const mostRead = 1 << 16

// Read returns the first 64 KiB of a file of a process below /proc, such as "status". It costs four
// system calls. os.ReadFile costs twelve, since it first tries to poll the file, and lists of all
// guests read thousands.
func Read(pid int, name string) ([]byte, error) { return read(pid, name, mostRead) }

// ReadStart returns what one read(2) of a file of a process returns, at most n bytes.
func ReadStart(pid int, name string, n int) ([]byte, error) {
	path := pathOf(pid, name)
	fd, err := open(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, n)
	got, err := readSome(fd, text)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return text[:got], nil
}

func read(pid int, name string, most int) ([]byte, error) {
	path := pathOf(pid, name)
	fd, err := open(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all bytes.Buffer
	part := make([]byte, 4096)
	for all.Len() < most {
		n, err := readSome(fd, part)
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			break
		}
		all.Write(part[:n])
	}
	return all.Bytes()[:min(all.Len(), most)], nil
}

func pathOf(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR { //nolint:errorlint // the system call's own
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

func readSome(fd int, into []byte) (int, error) {
	for {
		n, err := unix.Read(fd, into)
		if err != unix.EINTR { //nolint:errorlint // the system call's own
			return max(n, 0), err
		}
	}
}
