package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MonitorPath is where to connect to the process's monitor, from the caller's
// mount namespace: through the process's root, and its working directory where
// the command line has a relative path.
func (p Process) MonitorPath() (string, error) {
	switch {
	case p.Libvirt:
		return "", fmt.Errorf("%s (process %d) is %w, which holds its monitor", p.label(), p.PID, ErrLibvirt)
	case len(p.Monitors) == 0 && len(p.Others) > 0:
		return "", fmt.Errorf("%w: %s (process %d) has only %s (start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp)", ErrNoMonitor, p.label(), p.PID, strings.Join(p.Others, "; "))
	case len(p.Monitors) == 0:
		return "", fmt.Errorf("%w: %s (process %d) has none on its command line (start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp)", ErrNoMonitor, p.label(), p.PID)
	}
	paths := p.MonitorPaths()
	path := paths[len(paths)-1]
	if p.isRelative() {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: that of %s (process %d) has the relative path %s, and QEMU has changed its folder since, as with -daemonize (name the socket with --qmp)", ErrNoMonitor, p.label(), p.PID, p.Monitors[len(p.Monitors)-1].Path)
		}
	}
	return path, nil
}

func (p Process) isRelative() bool { return !filepath.IsAbs(p.Monitors[len(p.Monitors)-1].Path) }

// MonitorPaths is where to connect to each of the monitors, in the order of the command
// line. The last is the one that is used, which leaves the first to whoever else manages the guest.
func (p Process) MonitorPaths() []string {
	var paths []string
	for _, m := range p.Monitors {
		seen := fmt.Sprintf("/proc/%d/root%s", p.PID, m.Path)
		if !filepath.IsAbs(m.Path) {
			seen = fmt.Sprintf("/proc/%d/cwd/%s", p.PID, m.Path)
		} else if _, err := os.Lstat(seen); errors.Is(err, fs.ErrPermission) {
			seen = m.Path // its root may not be looked into: most likely it is ours
		}
		paths = append(paths, seen)
	}
	return paths
}

func (p Process) label() string {
	if p.Name == "" {
		return "the guest"
	}
	return fmt.Sprintf("guest %q", p.Name)
}
