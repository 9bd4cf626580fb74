package procfd

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A file that another process has open, or a path that another user controls, may be replaced at
// any time: by a FIFO, whose open(2) waits for a writer, by a device, whose open(2) has effects (a
// watchdog reboots the machine), or by a file of a FUSE server that never answers. So this package
// opens a reference (O_PATH), which involves neither a driver nor the file system, inspects the
// reference, and opens the file through it only if it is the wanted one.

// Stat is what the kernel knows about a file without asking its file system (AT_STATX_DONT_SYNC in
// statx(2)).
type Stat struct {
	Dev, Ino uint64 // which file it is
	Rdev     uint64 // of a device, as unix.Mkdev makes it
	Mode     uint16 // type and permissions, as in struct stat
	UID      int    // of its owner
	Size     uint64 // bytes
}

// IsCharDevice reports whether the file is the character device with that number.
func (s Stat) IsCharDevice(number uint64) bool {
	return s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Rdev == number
}

// IsRegular reports whether the file is a regular one.
func (s Stat) IsRegular() bool { return s.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSocket reports whether the file is a socket in the file system.
func (s Stat) IsSocket() bool { return s.Mode&unix.S_IFMT == unix.S_IFSOCK }

// StatFD inspects an open file.
func StatFD(fd int) (Stat, error) { return statx(fd, "", unix.AT_EMPTY_PATH) }

// Stat inspects the file without opening it.
func (f File) Stat() (Stat, error) { return statx(unix.AT_FDCWD, f.Path(), 0) }

func statx(dir int, path string, flags int) (Stat, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, path, flags|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st)
	if err != nil {
		return Stat{}, err
	}
	return Stat{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Mode: st.Mode, UID: int(st.Uid), Size: st.Size,
	}, nil
}

// A Reference refers to a file without having opened it (O_PATH in open(2)). Close it.
type Reference struct {
	Stat
	fd int
}

// Refer returns a Reference to the file at a path.
func Refer(path string) (*Reference, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	return refer(path, fd, err)
}

// ReferWithin is Refer for a path without symbolic links (RESOLVE_NO_SYMLINKS in openat2(2)): the
// owner of one of the directories cannot redirect it to another place.
func ReferWithin(path string) (*Reference, error) {
	fd, err := ReferIn(unix.AT_FDCWD, path, unix.RESOLVE_NO_SYMLINKS)
	return refer(path, fd, err)
}

func refer(path string, fd int, err error) (*Reference, error) {
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	st, err := StatFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return &Reference{st, fd}, nil
}

// Path returns a path of the file. While the Reference is open, it works even if the file was
// renamed or removed.
func (r *Reference) Path() string { return "/proc/self/fd/" + strconv.Itoa(r.fd) }

// Open opens the file itself, with the access mode and flags of open(2). The caller has checked by
// Stat that this has no effects. The caller owns the fd.
func (r *Reference) Open(flags int) (int, error) {
	fd, err := unix.Open(r.Path(), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	return fd, nil
}

// Close closes the reference.
func (r *Reference) Close() { _ = unix.Close(r.fd) }

// ErrNotRegular is returned for a directory, FIFO, device or socket in place of a regular file.
var ErrNotRegular = errors.New("it is not a regular file")

// OpenRegular opens a regular file for reading. It refuses any other file without opening it.
func OpenRegular(path string) (*os.File, error) {
	r, err := Refer(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if !r.IsRegular() {
		return nil, &os.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	fd, err := unix.Open(r.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenRoots is OpenRegular for a path that only root can make lead to another file. It does without
// /proc, whose entries the kernel makes for each process: that takes longer than all the rest.
func OpenRoots(path string) (*os.File, error) {
	was, err := statx(unix.AT_FDCWD, path, 0)
	fd := -1
	if err == nil && !was.IsRegular() {
		err = ErrNotRegular
	}
	if err == nil {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if is, err := StatFD(fd); err != nil || !is.IsRegular() {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "open", Path: path, Err: cmp.Or(err, ErrNotRegular)}
	}
	return os.NewFile(uintptr(fd), path), nil
}
