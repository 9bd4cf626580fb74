package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// socketDir returns the directory for this user's sockets, and creates it if necessary. No other
// user may enter it. It is $XDG_RUNTIME_DIR/testvm, or testvm-UID in the directory for temporary
// files.
func socketDir() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("testvm-%d", os.Getuid()))
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		dir = filepath.Join(run, "testvm")
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make the directory for sockets: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(owner) != os.Getuid() {
		return "", fmt.Errorf("the directory for sockets, %s, is open to others or not yours (remove it)", dir)
	}
	return dir, nil
}

// socket returns the path given by a flag, or the default path of the guest's socket of this kind.
func socket(flag, name, kind string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("name %q cannot name a socket: it is empty or contains a slash (give the path with --%s)",
			name, kind)
	}
	dir, err := socketDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name+"."+kind), nil
}

// free returns an error if a process listens on the socket at path, which QEMU would replace.
func free(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil
	}
	_ = conn.Close()
	return fmt.Errorf("socket %s is in use: a guest of this name is already running", path)
}
