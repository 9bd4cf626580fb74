// Package fdlabel makes files that tell by their names what a process was given them for: whoever may look into the
// process (proc(5)) reads that from its list of open files, and the label goes with the process, however that ends.
package fdlabel

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// Max is how many bytes a label may have: NAME_MAX less "memfd:" (mm/memfd.c).
const Max = 249

// New makes a label: an empty memfd(2) of that name. The caller owns it.
func New(text string) (*os.File, error) {
	if len(text) > Max || strings.Contains(text, "\x00") {
		return nil, fmt.Errorf("label of %d bytes: at most %d fit, and no NUL", len(text), Max)
	}
	fd, err := unix.MemfdCreate(text, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), text), nil
}

// Of is the text of a label; ok is false for any other file. Whoever runs the process may have made it.
func Of(f procfd.File) (text string, ok bool) {
	if text, ok = strings.CutPrefix(f.Target, "/memfd:"); !ok {
		return "", false
	}
	return strings.CutSuffix(text, " (deleted)")
}
