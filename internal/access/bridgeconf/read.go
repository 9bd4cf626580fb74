package bridgeconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"vmnet/internal/kernel/procfd"
)

// Bounds. QEMU's only bound is the length of its line buffer, 4096 bytes with the final NUL.
const (
	maxBytes = 1 << 20 // of all files together
	maxRules = 10000   // and includes, of all files together
	maxDepth = 8       // of files that include each other, the main file included
	maxLine  = 4095
)

// errRefused is the error for a file that QEMU would read or skip, and that is refused here. It is
// an error in included files too, since the part that was not read may contain a deny.
var errRefused = errors.New("refused")

// Read reads the file and the files that it includes, with the privileges of the caller: so a
// file's mode decides for which users it is read. An error names file, line and cure. If the main
// file does not exist, the error matches fs.ErrNotExist with errors.Is, and nothing is allowed.
func Read(path string) (*ACL, error) { return read(path, nil) }

// ReadRoots is Read for a main file whose path is root's: nobody else can put another file there.
func ReadRoots(path string) (*ACL, error) { return read(path, procfd.OpenRoots) }

func read(path string, openMain func(string) (*os.File, error)) (*ACL, error) {
	r := reader{acl: &ACL{Path: path}, openMain: openMain}
	if err := r.read(path); err != nil {
		return nil, err
	}
	return r.acl, nil
}

// reader reads one main file and everything that it includes.
type reader struct {
	openMain func(path string) (*os.File, error) // nil for procfd.OpenRegular, which opens the others
	acl      *ACL
	bytes    int           // read so far
	includes int           // seen so far
	done     []os.FileInfo // files that were read, or are being read
	open     []os.FileInfo // those being read, the main one first
}

func (r *reader) read(path string) error {
	if len(r.open) == maxDepth {
		return fmt.Errorf("%w: %s: files include each other more than %d deep (include it from a file further up)",
			errRefused, path, maxDepth)
	}
	open := procfd.OpenRegular
	if len(r.open) == 0 && r.openMain != nil {
		open = r.openMain
	}
	f, info, err := openFile(path, open)
	if err != nil {
		return err
	}
	defer f.Close()
	if contains(r.open, info) {
		// QEMU repeats it until it runs out of fds
		return fmt.Errorf("%s: it includes itself (remove the include)", path)
	}
	if contains(r.done, info) {
		return nil // reading the same rules twice changes nothing
	}
	r.done = append(r.done, info)
	r.open = append(r.open, info)
	defer func() { r.open = r.open[:len(r.open)-1] }()
	data, err := r.content(f, path)
	if err != nil {
		return err
	}
	return r.parse(path, data)
}

func contains(files []os.FileInfo, f os.FileInfo) bool {
	for _, other := range files {
		if os.SameFile(f, other) {
			return true
		}
	}
	return false
}

// openFile opens a regular file. Anything else is refused before it is opened: opening it could
// block on the writer of a FIFO or have side effects.
func openFile(path string, open func(string) (*os.File, error)) (*os.File, os.FileInfo, error) {
	f, err := open(path)
	if errors.Is(err, procfd.ErrNotRegular) {
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			return nil, nil, fmt.Errorf("%s: it is a directory (name the files in it)", path) // QEMU reads it as empty
		}
		return nil, nil, fmt.Errorf("%w: %s: it is not a regular file (replace it by one)", errRefused, path)
	}
	if err != nil {
		return nil, nil, explainOpen(err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w: %w", errRefused, err), f.Close())
	}
	return f, info, nil
}

// explainOpen separates files that do not exist, or that this user may not read, from those that
// could be read at another time: a caller with few fds left, say, must not choose which lines
// count.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (its owner and mode decide who may read it)", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (create it, with lines such as: allow br0)", err)
	case errors.Is(err, syscall.ENOTDIR):
		return err
	}
	return fmt.Errorf("%w: %w (it may deny bridges, so it must be readable)", errRefused, err)
}

func (r *reader) content(f io.Reader, path string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, int64(maxBytes-r.bytes)+1))
	r.bytes += len(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: read %s: %w (it may deny bridges, so it must be readable)", errRefused, path, err)
	case r.bytes > maxBytes:
		return nil, fmt.Errorf("%w: %s: more than %d bytes, with the files read before it (take rules out)",
			errRefused, path, maxBytes)
	}
	return data, nil
}
