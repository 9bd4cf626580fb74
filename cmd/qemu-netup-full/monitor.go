package main

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"vmnet/internal/rundir"
	"vmnet/internal/vmm/launch"
)

// monitorPath returns the intended path of QEMU's QMP socket; empty for none.
func (a *app) monitorPath(o *launchOptions) string {
	switch {
	case o.qmp != "auto":
		return strings.TrimPrefix(o.qmp, "none")
	case launch.HasMonitor(o.guest):
		return ""
	}
	return filepath.Join(a.monitorDirs()[0], monitorName(o.nics[0].spec.VM))
}

// monitor makes the socket's directory, with the caller's privileges, and returns the socket's
// path. vmnet attach finds it by QEMU's command line.
func (a *app) monitor(o *launchOptions) (string, error) {
	path := a.monitorPath(o)
	if path == "" || o.qmp != "auto" || o.dryRun {
		return path, nil
	}
	dir, err := rundir.Make(a.monitorDirs(), a.p.Caller.UID)
	if err != nil {
		return "", fmt.Errorf("--qmp auto: %w (give a path: --qmp PATH)", err)
	}
	path = filepath.Join(dir, filepath.Base(path))
	if conn, err := net.Dial("unix", path); err == nil { // QEMU would replace that guest's socket
		_ = conn.Close()
		return "", fmt.Errorf("--qmp auto: a guest of that name already listens on %s (give another path: --qmp PATH)", path)
	}
	return path, nil
}

// monitorDirs returns the directories where the socket may be, the best first.
func (a *app) monitorDirs() []string {
	return rundir.Of(a.p.Caller.UID, a.p.Getenv("XDG_RUNTIME_DIR"))
}

// maxMonitorName leaves room for the directory in a socket's path (sun_path of unix(7), 107 bytes).
const maxMonitorName = 60

// monitorName returns a file name for a guest's name, different for each. If the guest's name
// cannot be a file name or is too long for a socket's path, the result ends with ~ and a hash; no
// other has a ~.
func monitorName(vm string) string {
	plain := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/,=~", r) || r <= ' ' {
			return '-'
		}
		return r
	}, vm)
	plain = strings.TrimLeft(plain, ".")
	if plain == vm && len(plain) <= maxMonitorName {
		return plain + ".qmp"
	}
	sum := sha256.Sum256([]byte(vm))
	hash := "~" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10])) // 16 letters
	return strings.ToValidUTF8(plain[:min(len(plain), maxMonitorName-len(hash))], "") + hash + ".qmp"
}
