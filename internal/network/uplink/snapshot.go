package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/filelock"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
)

// Snapshot is the file with what a move took, until somebody confirms it or all is given back. The
// process that takes back locks it.
type Snapshot struct {
	Path string
	NS   *netns.NS
}

// Saved is the content of a Snapshot.
type Saved struct {
	Boot    string // of which boot of the machine it is
	Netns   uint64 // inode of the namespace
	Port    string // of the network's bridge
	Created bool   // the network was made with the move, and ends with it
	Config  rtnl.HostConfig
}

// maxSnapshot bounds the file.
const maxSnapshot = 16 << 20

// Write stores what is moved from an uplink. The file appears whole or not at all.
func (s Snapshot) Write(port string, created bool, h *rtnl.HostConfig) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", s.Path, err)
		}
	}()
	saved := Saved{Port: port, Created: created, Config: *h}
	if saved.Boot, saved.Netns, err = s.here(); err != nil {
		return err
	}
	text, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(s.Path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), s.Path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// here returns what tells this boot and namespace.
func (s Snapshot) here() (boot string, inode uint64, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	inode, err = s.NS.Inode()
	return strings.TrimSpace(string(text)), inode, err
}

// Read reads the file; nil if there is none of this boot.
func (s Snapshot) Read() (*Saved, error) {
	f, err := procfd.OpenRegular(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.Path, err)
	}
	defer f.Close()
	var saved Saved
	if info, err := f.Stat(); err != nil || info.Size() > maxSnapshot {
		return nil, errors.Join(err, fmt.Errorf("read %s: it is too long (remove it)", s.Path))
	}
	if err := json.NewDecoder(f).Decode(&saved); err != nil {
		return nil, fmt.Errorf("read %s: %w (remove it)", s.Path, err)
	}
	boot, inode, err := s.here()
	if err != nil || saved.Boot != boot || saved.Netns != inode {
		return nil, err
	}
	return &saved, nil
}

// Remove removes the file, if there is one.
func (s Snapshot) Remove() error {
	err := os.Remove(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Lock marks the caller as the process that takes back, until its end or unlock.
func (s Snapshot) Lock(ctx context.Context) (unlock func() error, err error) {
	return filelock.Take(ctx, s.Path, "another process takes back")
}

// Guarded reports whether a process will take back.
func (s Snapshot) Guarded() bool {
	if _, err := os.Lstat(s.Path); err != nil {
		return false
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	unlock, err := s.Lock(now)
	if err != nil {
		return true
	}
	return unlock() != nil
}

// Now returns the time since the machine was started, with the time that it was suspended
// (/proc/uptime in proc(5)): setting the clock does not change it.
func Now() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/uptime: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
