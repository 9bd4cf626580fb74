package guestfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/network/userdirs"
	"vmnet/internal/strictyaml"
)

// DefaultDir is where the files of guests are.
const DefaultDir = "/etc/vmnet/guests.d"

const suffix = ".yaml"

// UserDir returns where the files of a user's guests are, as the XDG Base Directory Specification
// places them. getenv returns variables of the user's environment.
func UserDir(getenv func(string) string) (Dir, error) {
	networks, _, err := userdirs.Of(getenv)
	return Dir(filepath.Join(filepath.Dir(string(networks)), "guests.d")), err
}

// Dir is a directory of files NAME.yaml, one for each guest. It need not exist. A file is refused
// unless it belongs to root or the caller, and only its owner may write it and the directory.
type Dir string

// All reads all files. broken are the errors of those that cannot be read, by what the files are
// called without their suffix. Two files of one guest are both broken.
func (d Dir) All() (guests []*Guest, broken map[string]error, err error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("declared guests: %w", err)
	}
	broken = map[string]error{}
	of := map[string][]string{} // files by guest
	for _, e := range entries {
		if !isFile(e.Name()) {
			continue
		}
		name, path := strings.TrimSuffix(e.Name(), suffix), filepath.Join(string(d), e.Name())
		g, err := read(path, name, true)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			broken[name] = err
		default:
			of[g.VM] = append(of[g.VM], name)
			guests = append(guests, g)
		}
	}
	for vm, names := range of {
		if len(names) == 1 {
			continue
		}
		for _, name := range names {
			broken[name] = fmt.Errorf("%s: guest %q has several files, of which none counts: %s (keep one)",
				filepath.Join(string(d), name+suffix), vm, strings.Join(names, suffix+", ")+suffix)
		}
		guests = slices.DeleteFunc(guests, func(g *Guest) bool { return g.VM == vm })
	}
	return guests, broken, nil
}

// Stamp returns a text that differs after any change of the directory or its files.
func (d Dir) Stamp() string {
	var b strings.Builder
	add := func(path string) {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintln(&b, err)
			return
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok { // ctime also changes with mode and owner
			fmt.Fprintln(&b, path, st.Dev, st.Ino, st.Size, st.Ctim)
		}
	}
	add(string(d))
	entries, _ := os.ReadDir(string(d)) // an error is in the text as well
	for _, e := range entries {
		if isFile(e.Name()) {
			add(filepath.Join(string(d), e.Name()))
		}
	}
	return b.String()
}

// isFile reports whether an entry of a Dir is the file of a guest.
func isFile(entry string) bool {
	return strings.HasSuffix(entry, suffix) && !strings.HasPrefix(entry, ".")
}

// check returns an error if others may write the directory.
func (d Dir) check() error {
	info, err := os.Stat(string(d))
	if err != nil {
		return err
	}
	return trusted(string(d), info, "0755")
}

// trusted returns an error unless only root or the caller could have written what info describes.
func trusted(path string, info fs.FileInfo, mode string) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: it belongs to uid %d, neither to root nor to the caller (chown root %s)",
			path, st.Uid, path)
	}
	return strictyaml.OnlyOwnerWrites(path, info, mode)
}

// ReadFile reads one file that the caller has chosen, of any owner. The guest's name is that of the
// file unless the file says another.
func ReadFile(path string) (*Guest, error) {
	return read(path, strings.TrimSuffix(filepath.Base(path), suffix), false)
}

func read(path, vm string, careful bool) (*Guest, error) {
	f, err := procfd.OpenRegular(path)
	switch {
	case errors.Is(err, procfd.ErrNotRegular):
		return nil, fmt.Errorf("%s: it is not a regular file (replace it by one)", path)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	if careful {
		info, err := f.Stat()
		if err == nil {
			err = trusted(path, info, "0644")
		}
		if err != nil {
			return nil, err
		}
	}
	return Read(path, vm, f)
}

// Read reads a file's content; path is for its errors.
func Read(path, vm string, r io.Reader) (*Guest, error) {
	data, err := strictyaml.Read(path, r)
	if err != nil {
		return nil, err
	}
	return Parse(path, vm, data)
}
