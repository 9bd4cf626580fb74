package strictyaml

import (
	"fmt"
	"io"
	"io/fs"
)

// MaxBytes bounds a file.
const MaxBytes = 1 << 20

// Read reads a file's text. It does not read on after MaxBytes, which Root reports.
func Read(path string, r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// OnlyOwnerWrites returns an error if others than its owner may write the file or directory that
// info describes. mode is for the cure.
func OnlyOwnerWrites(path string, info fs.FileInfo, mode string) error {
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: users other than its owner may write it (chmod %s %s)", path, mode, path)
	}
	return nil
}
