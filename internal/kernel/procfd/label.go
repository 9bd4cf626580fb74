package procfd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLabel is how many bytes a label may have: NAME_MAX less "memfd:" (mm/memfd.c).
const MaxLabel = 249

// NewLabel makes a label for a process that is given the file: an empty memfd(2) whose name is the
// text. A user who may look into the process (proc(5)) reads the text in its list of open files,
// and the label goes with the process, however that ends. The caller owns the file.
func NewLabel(text string) (*os.File, error) {
	if len(text) > MaxLabel || strings.Contains(text, "\x00") {
		return nil, fmt.Errorf("label of %d bytes: at most %d fit, and no NUL", len(text), MaxLabel)
	}
	fd, err := unix.MemfdCreate(text, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), text), nil
}

// LabelOf returns the text of a label; ok is false for any other file. The user who runs the
// process may have made it.
func LabelOf(f File) (text string, ok bool) {
	if text, ok = strings.CutPrefix(f.Target, "/memfd:"); !ok {
		return "", false
	}
	return strings.CutSuffix(text, " (deleted)")
}

// A label that has ended is one byte long: a process that was started with a label cannot be asked
// to close it when it counts no more.

// LabelEnded reports whether EndLabel has ended a label. The user who runs the process may have,
// too.
func (f File) LabelEnded() bool {
	st, err := f.Stat()
	return err == nil && st.Size > 0
}

// EndLabel ends a label that another process has open. Whatever else that has put there meanwhile
// is left alone, with an error: only an empty file of the kernel's own mount of memfds is written
// to.
func (f File) EndLabel() error {
	ref, err := Refer(f.Path())
	if err != nil {
		return err
	}
	defer ref.Close()
	target, err := os.Readlink(ref.Path())
	if err != nil {
		return err
	}
	if _, ok := LabelOf(File{Target: target}); !ok || !ref.IsRegular() || ref.Size > 0 {
		return fmt.Errorf("%s: %s is no label", f.Path(), target)
	}
	own, err := NewLabel("")
	if err != nil {
		return err
	}
	defer own.Close()
	if st, err := StatFD(int(own.Fd())); err != nil || st.Dev != ref.Dev {
		return errors.Join(fmt.Errorf("%s: %s is no memfd", f.Path(), target), err)
	}
	fd, err := ref.Open(unix.O_WRONLY)
	if err != nil {
		return err
	}
	err = os.NewSyscallError("ftruncate", unix.Ftruncate(fd, 1))
	return errors.Join(err, unix.Close(fd))
}
