package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/rundir"
	"vmnet/internal/vhostuser"
)

// A QEMU that shares its guest's memory listens for a switch on a socket in a directory that only
// QEMU's user and root can enter: any process that connects there gets the memory. QEMU removes the
// socket's file itself, unless it is killed.

// FrontendDir returns the directory of the sockets on which QEMUs of a user listen. runtime is the
// user's $XDG_RUNTIME_DIR. Root has one directory for each user.
func FrontendDir(uid int, runtime string) string {
	if os.Geteuid() == 0 {
		return filepath.Join(rundir.System, fmt.Sprintf("vhost-user-%d", uid))
	}
	return filepath.Join(rundir.OwnOrBest(rundir.Of(uid, runtime), uid)[0], "vhost-user")
}

// MakeFrontendDir makes a FrontendDir of a user unless it is there, and removes the sockets of
// QEMUs that were killed.
func MakeFrontendDir(dir string, uid int) error {
	if _, err := rundir.Make([]string{filepath.Dir(dir)}, os.Geteuid()); err != nil {
		return err
	}
	if err := rundir.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if os.Geteuid() == 0 { // nobody else can have put it there
		if err := os.Lchown(dir, uid, -1); err != nil {
			return err
		}
	}
	if err := rundir.OwnedAlone(dir, uid); err != nil {
		return err
	}
	if _, err := tidyFrontends(dir, false); !errors.Is(err, errFull) {
		return err
	}
	return nil
}

// TidyFrontends removes the sockets of QEMUs that were killed: the caller's, and as root those of
// all users. If dry is set it removes nothing. It returns their paths.
func TidyFrontends(runtime string, dry bool) (removed []string, err error) {
	dirs := []string{FrontendDir(os.Geteuid(), runtime)}
	if os.Geteuid() == 0 {
		if dirs, err = filepath.Glob(filepath.Join(rundir.System, "vhost-user-*")); err != nil {
			return nil, err
		}
	}
	for _, dir := range dirs {
		some, errDir := tidyFrontends(dir, dry)
		removed = append(removed, some...)
		if !errors.Is(errDir, fs.ErrNotExist) {
			err = errors.Join(err, errDir)
		}
	}
	return removed, err
}

// maxFrontends bounds how many entries of a directory are looked at: its user may fill it.
const maxFrontends = 4096

// errFull is returned for a directory with more entries than are looked at.
var errFull = errors.New("more entries than vmnet looks at")

// tidyFrontends removes the sockets of processes that have ended, on which nobody listens. The
// process may have passed its socket on when it became a daemon.
func tidyFrontends(dir string, dry bool) (removed []string, err error) {
	list, err := readSome(dir, maxFrontends)
	for _, e := range list {
		text, _, _ := strings.Cut(e.Name(), "-")
		pid, errPID := strconv.Atoi(text)
		if errPID != nil || e.Type() != fs.ModeSocket || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		path := filepath.Join(dir, e.Name())
		c, errDial := net.Dial("unix", path)
		switch {
		case errDial == nil:
			_ = c.Close()
		case errors.Is(errDial, unix.ECONNREFUSED):
			removed = append(removed, path)
			if dry {
				continue
			}
			if errRemove := os.Remove(path); !errors.Is(errRemove, fs.ErrNotExist) {
				err = errors.Join(err, errRemove)
			}
		}
	}
	return removed, err
}

// readSome reads at most n entries of a directory. If there are more, the error matches errFull.
func readSome(dir string, n int) ([]fs.DirEntry, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.ReadDir(n + 1)
	switch {
	case len(list) > n:
		return list[:n], fmt.Errorf("tidy %s: %w: %d (remove what no QEMU listens on)", dir, errFull, n)
	case errors.Is(err, io.EOF):
		err = nil
	}
	return list, err
}

// FrontendSocket returns the path of the socket on which the QEMU that is process pid listens for
// the switch that serves a device.
func FrontendSocket(dir string, pid int, device string) string {
	return filepath.Join(dir, fmt.Sprintf("%d-%s", pid, device))
}

// ConnectFrontend connects to a path on which process pid listens: it returns an error if another
// process does. The caller closes the file.
func ConnectFrontend(ctx context.Context, path string, pid int) (*os.File, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (QEMU sees another directory there: use --via tap)", err)
	}
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	defer conn.Close()
	if err := fdpass.PeerIs(conn, pid, path); err != nil {
		return nil, err
	}
	return conn.File()
}

// FindFrontend connects to the socket on which process pid listens for the switch that serves a
// device. If it does not, the error matches fs.ErrNotExist. The caller closes the file.
func FindFrontend(ctx context.Context, pid int, device string) (*os.File, error) {
	list, err := procview.Listening(pid)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		if _, of, _ := strings.Cut(filepath.Base(l.Name), "-"); of != device {
			continue
		}
		files, errLocate := procview.Locate(ctx, pid, l.Name)
		for _, f := range files {
			found, errConnect := ConnectFrontend(ctx, procview.Address(f), pid)
			if errConnect == nil {
				fdpass.CloseAll(files)
				return found, nil
			}
			err = errors.Join(err, errConnect)
		}
		fdpass.CloseAll(files)
		err = errors.Join(err, errLocate)
	}
	if err == nil {
		err = fmt.Errorf("process %d listens on no socket for device %s: %w", pid, device, fs.ErrNotExist)
	}
	return nil, err
}

// StandIn serves a QEMU in place of the switch that it waits for on a socket: until one connects,
// QEMU answers nobody. StandIn takes no frames. end ends it. It is no error if nobody listens.
func StandIn(path string, pairs int) (end func()) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return func() {}
	}
	return standIn(conn, pairs)
}

// StandInOn is StandIn on a connection to QEMU, which it takes over.
func StandInOn(f *os.File, pairs int) (end func()) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return func() {}
	}
	return standIn(conn.(*net.UnixConn), pairs)
}

func standIn(conn *net.UnixConn, pairs int) (end func()) {
	d, err := vhostuser.New(pairs, func() {})
	if err != nil {
		return func() { _ = conn.Close() }
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.Serve(conn) })
	return func() {
		_ = d.Close()
		serving.Wait()
	}
}

// HangUp ends a connection for all processes that have it.
func HangUp(f *os.File) error { return unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR) }
