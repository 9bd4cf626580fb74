package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/filelock"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/strictyaml"
)

// DefaultDir is where the files of networks are.
const DefaultDir = "/etc/vmnet/networks.d"

const suffix = ".yaml"

// Dir is a directory of files NAME.yaml, one for each network. It need not exist.
type Dir string

// Path returns the path of a network's file.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name+suffix) }

// Read reads a network's file. That there is none is an error that matches fs.ErrNotExist with
// errors.Is.
func (d Dir) Read(name string) (*Network, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	path := d.Path(name)
	f, err := procfd.OpenRegular(path)
	switch {
	case errors.Is(err, procfd.ErrNotRegular):
		return nil, fmt.Errorf("%s: it is not a regular file (replace it by one)", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing{name, path}
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := strictyaml.OnlyOwnerWrites(path, info, "0644"); err != nil {
		return nil, err
	}
	data, err := strictyaml.Read(path, f)
	if err != nil {
		return nil, err
	}
	return Parse(path, name, data)
}

// missing is the error for a network without a file.
type missing struct{ name, path string }

func (m missing) Error() string {
	return fmt.Sprintf("there is no network %s: %s does not exist (vmnet network list shows all)", m.name, m.path)
}

func (missing) Is(target error) bool { return target == fs.ErrNotExist }

// Names returns the names of all networks that have a file, sorted.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// All reads the files of all networks. broken are the errors of those that cannot be read.
func (d Dir) All() (networks []*Network, broken []error, err error) {
	names, err := d.Names()
	for _, name := range names {
		n, err := d.Read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		case err != nil:
			broken = append(broken, err)
		default:
			networks = append(networks, n)
		}
	}
	return networks, broken, err
}

// Write stores a network's file. It appears whole or, after an error, not at all: a file that was
// there stays as it was, also on a full disk.
func (d Dir) Write(n *Network) (err error) {
	path := d.Path(n.Name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	if err := d.clean(n.Name); err != nil {
		return err
	}
	f, err := os.CreateTemp(string(d), temp(n.Name))
	if err != nil {
		return err
	}
	_, err = f.Write(n.Format())
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return d.sync()
}

// Remove removes a network's file. One that is not there is success.
func (d Dir) Remove(name string) error {
	if err := d.clean(name); err != nil {
		return err
	}
	err := os.Remove(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.sync()
	}
	return err
}

// temp is the pattern of the files that Write makes, for os.CreateTemp and for a glob.
func temp(name string) string { return "." + name + suffix + ".*" }

// clean removes what a Write that was killed has left.
func (d Dir) clean(name string) error {
	left, err := filepath.Glob(filepath.Join(string(d), temp(name)))
	for _, path := range left {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// sync makes the names of the directory's files safe from a crash.
func (d Dir) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lockFile is what Lock locks: nobody but its owner may open it.
const lockFile = ".lock"

// Lock waits until no other process has the networks' lock, and takes it. Only one process at a
// time changes networks: a subnet that one has found free stays free until its file is written.
func (d Dir) Lock(ctx context.Context) (unlock func() error, err error) {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return nil, fmt.Errorf("lock the networks: %w", err)
	}
	unlock, err = filelock.Take(ctx, filepath.Join(string(d), lockFile), "another vmnet network is changing one")
	if err != nil {
		return nil, fmt.Errorf("lock the networks: %w", err)
	}
	return unlock, nil
}
