package procfd

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLabel is how many bytes a label may have: NAME_MAX less "memfd:" (mm/memfd.c).
const MaxLabel = 249

// NewLabel makes a label for a process that is given the file: an empty memfd(2) whose name is the
// text. A user who may look into the process (proc(5)) reads the text in its list of open files, and
// the label goes with the process, however that ends. The caller owns the file.
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

// LabelOf returns the text of a label; ok is false for any other file. The user who runs the process
// may have made it.
func LabelOf(f File) (text string, ok bool) {
	if text, ok = strings.CutPrefix(f.Target, "/memfd:"); !ok {
		return "", false
	}
	return strings.CutSuffix(text, " (deleted)")
}
