package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"vmnet/internal/launch"
)

// monitorPath is where the QMP socket of QEMU is to be, if all goes well; empty for none.
func (a *app) monitorPath(o *launchOptions) string {
	switch {
	case o.qmp != "auto":
		return strings.TrimPrefix(o.qmp, "none")
	case launch.HasMonitor(o.argv):
		return ""
	}
	return filepath.Join(a.monitorDirs()[0], monitorName(o.nics[0].spec.VM))
}

// monitor makes sure that the socket can be made, with the caller's rights. vmnet attach finds it by
// QEMU's command line.
func (a *app) monitor(o *launchOptions) (string, error) {
	path := a.monitorPath(o)
	if path == "" || o.qmp != "auto" || o.dryRun {
		return path, nil
	}
	dir, err := a.monitorDir()
	if err != nil {
		return "", fmt.Errorf("--qmp auto: %w (name a path: --qmp PATH)", err)
	}
	path = filepath.Join(dir, filepath.Base(path))
	if conn, err := net.Dial("unix", path); err == nil { // QEMU would take the path from it
		_ = conn.Close()
		return "", fmt.Errorf("--qmp auto: a guest of that name listens on %s already (name another path: --qmp PATH)", path)
	}
	return path, nil
}

// monitorDirs are where the socket may be, best first.
func (a *app) monitorDirs() []string {
	if a.p.Caller.Root() {
		return []string{"/run/vmnet"}
	}
	dirs := []string{fmt.Sprintf("/tmp/vmnet-%d", a.p.Caller.UID)}
	if run := a.p.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		dirs = append([]string{filepath.Join(run, "vmnet")}, dirs...)
	}
	return dirs
}

// monitorDir makes the folder, or takes one that is the caller's alone: who else could write
// there could listen in QEMU's place.
func (a *app) monitorDir() (string, error) {
	var errs []error
	for _, dir := range a.monitorDirs() {
		err := os.Mkdir(dir, 0o700)
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = ownedAlone(dir, a.p.Caller.UID)
		}
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func ownedAlone(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != uid || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is no folder that you own and others cannot write to", dir)
	}
	return nil
}

// monitorName makes a file name of a guest's.
func monitorName(vm string) string {
	plain := strings.Map(func(r rune) rune {
		if r == '/' || r == ',' || r <= ' ' {
			return '-'
		}
		return r
	}, vm)
	return strings.TrimLeft(plain, ".") + ".qmp"
}
