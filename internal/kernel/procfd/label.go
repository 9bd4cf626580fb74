package procfd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLabel limits the length of a label in bytes: NAME_MAX less "memfd:" (mm/memfd.c).
const MaxLabel = 249

// NewLabel makes a label, which marks a process that has it open: an empty file of memfd_create(2)
// whose name is the text. Users who may read the process's list of open files (proc(5)) find the
// text there. The label disappears with the process. The caller owns the file.
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

// LabelOf returns the text of a label. ok is false for any other file. The label may have been made
// by the process itself.
func LabelOf(f File) (text string, ok bool) {
	if text, ok = strings.CutPrefix(f.Target, "/memfd:"); !ok {
		return "", false
	}
	return strings.CutSuffix(text, " (deleted)")
}

// A label that has ended is one byte long. A process that inherited a label cannot be made to close
// it when it is no longer valid.

// LabelEnded reports whether a label has ended, by EndLabel or by the process itself.
func (f File) LabelEnded() bool {
	st, err := f.Stat()
	return err == nil && st.Size > 0
}

// EndLabel ends a label that another process has open. If the process has put another file there in
// the meantime, EndLabel returns an error and does not change that file: it only writes to an empty
// file on the kernel's internal mount of memfds.
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
		return fmt.Errorf("%s: %s is not a label", f.Path(), target)
	}
	own, err := NewLabel("")
	if err != nil {
		return err
	}
	defer own.Close()
	if st, err := StatFD(int(own.Fd())); err != nil || st.Dev != ref.Dev {
		return errors.Join(fmt.Errorf("%s: %s is not a memfd", f.Path(), target), err)
	}
	fd, err := ref.Open(unix.O_WRONLY)
	if err != nil {
		return err
	}
	err = os.NewSyscallError("ftruncate", unix.Ftruncate(fd, 1))
	return errors.Join(err, unix.Close(fd))
}
