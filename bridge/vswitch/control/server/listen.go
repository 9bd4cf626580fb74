package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/filelock"
	"vmnet/internal/rundir"
)

// ErrRunning is returned if a switch already listens on the socket.
var ErrRunning = errors.New("a switch of that name runs already")

// A Place is a path on which a switch is about to listen. Its directory is locked (flock(2)) until
// Listen or Forget, so that no other switch can use it.
type Place struct {
	path   string
	unlock func() error
}

// Prepare prepares Listen while this process still has its privileges. It makes the socket's
// directory, and removes the socket of a switch that was killed, even another user's. If a switch
// listens on it, the error is ErrRunning. Prepare waits up to 5 s for other processes that start or
// stop a switch there.
//
// The directory belongs to uid, so that the switch needs only that user's permissions to listen
// there and to clean up. A name with a slash is the socket's path, and its directory is not
// changed. If root's directory has a subdirectory of that name that this user owns, as a service
// manager makes it, Prepare uses that.
func Prepare(name string, uid, gid int) (*Place, error) {
	var dirErr error
	p, err := prepareIn(func() (path string, err error) {
		path, dirErr = prepareDir(name, uid, gid)
		return path, dirErr
	})
	if err != nil && dirErr == nil {
		err = fmt.Errorf("switch %s: %w", name, err)
	}
	return p, err
}

// prepareIn is Prepare with a function that makes the socket's directory. It retries if another
// process has removed the directory before it was locked.
func prepareIn(makeDir func() (path string, err error)) (*Place, error) {
	const tries = 10
	for n := 1; ; n++ {
		path, err := makeDir()
		if err != nil {
			return nil, err
		}
		p, err := prepare(path)
		if n == tries || !errors.Is(err, filelock.ErrGone) {
			return p, err
		}
	}
}

func prepare(path string) (*Place, error) {
	unlock, err := filelock.Directory(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := clearPath(path); err != nil {
		_ = unlock()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Place{path, unlock}, nil
}

// Listen makes the socket as the function Listen does, and ends the Place. After an error, the
// caller must call Forget.
func (p *Place) Listen() (*Listener, error) {
	l, err := listen(p.path)
	if err == nil {
		_ = p.unlock()
	}
	return l, err
}

// Forget removes the directory that Prepare has made, if it is empty and this process may. It ends
// the Place.
func (p *Place) Forget() {
	forget(p.path)
	_ = p.unlock()
}

func prepareDir(name string, uid, gid int) (path string, err error) {
	if strings.Contains(name, "/") {
		return name, control.CheckPath(name)
	}
	if err := control.CheckName(name); err != nil {
		return "", err
	}
	self := os.Geteuid()
	given := filepath.Join(rundir.System, "switch", name)
	if self != 0 && rundir.OwnedAlone(given, self) == nil {
		return filepath.Join(given, control.SocketName), nil
	}
	dir, err := rundir.Make(rundir.Of(self, os.Getenv("XDG_RUNTIME_DIR")), self)
	if err == nil {
		dir, err = makeDir(dir, name, uid, gid)
	}
	if err != nil {
		return "", fmt.Errorf("make a directory for the socket: %w (or name a path: ./%s)", err, name)
	}
	path = filepath.Join(dir, control.SocketName)
	return path, control.CheckPath(path)
}

// forget removes a socket's own directory if it is empty. The caller has locked it.
func forget(path string) {
	if filepath.Base(path) == control.SocketName {
		_ = os.Remove(filepath.Dir(path))
	}
}

// makeDir makes dir/switch/name, which belongs to uid, and lets that user traverse its parents.
func makeDir(dir, name string, uid, gid int) (string, error) {
	self := os.Geteuid()
	all, err := rundir.Make([]string{filepath.Join(dir, "switch")}, self)
	if err != nil {
		return "", err
	}
	own := filepath.Join(all, name)
	if err := rundir.Mkdir(own, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if uid == self {
		return own, takeBack(own, uid)
	}
	return own, errors.Join(os.Chmod(dir, 0o711), os.Chmod(all, 0o711), os.Lchown(own, uid, gid))
}

// takeBack makes this user the owner of a directory that was made for a switch of another user.
func takeBack(dir string, uid int) error {
	if uid == 0 {
		if err := os.Lchown(dir, 0, 0); err != nil {
			return err
		}
	}
	return rundir.OwnedAlone(dir, uid)
}

// A Listener is the socket of a switch that runs.
type Listener struct {
	path string
	ln   *net.UnixListener
	file fs.FileInfo // identifies the socket
}

// Listen makes the socket, accessible to this user only. It replaces the socket of a switch that
// was killed. If a switch listens, the error is ErrRunning. If the path is anything else, the error
// says so.
//
// A lock on the directory keeps concurrent calls apart. It lasts no longer than this call.
func Listen(path string) (*Listener, error) {
	unlock, err := filelock.Directory(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() { _ = unlock() }()
	return listen(path)
}

// listen is Listen for a caller that has locked the directory.
func listen(path string) (*Listener, error) {
	l, err := makeSocket(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func makeSocket(path string) (*Listener, error) {
	if err := clearPath(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	l := &Listener{path: path, ln: ln}
	// A client that connects before the chmod must still pass Server.admit.
	if err = os.Chmod(path, 0o600); err == nil {
		l.file, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(path))
	}
	return l, nil
}

// clearPath removes a socket on which no process listens.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("it exists and is not a socket (remove it, or name another path)")
	}
	conn, err := net.DialTimeout("unixpacket", path, time.Second)
	switch {
	case err == nil:
		return errors.Join(ErrRunning, conn.Close())
	case errors.Is(err, syscall.EAGAIN): // its queue of connections is full
		return ErrRunning
	case errors.Is(err, syscall.EPROTOTYPE):
		return errors.New("something other than a switch listens on it (name another path)")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return err
	}
	return os.Remove(path)
}

// Path returns the socket's path.
func (l *Listener) Path() string { return l.path }

// Close removes the socket, and its directory if that is empty, and ends Serve. If another process
// keeps the directory locked, the directory stays.
func (l *Listener) Close() error {
	unlock, lockErr := filelock.Directory(filepath.Dir(l.path))
	var err error
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.file) {
		err = os.Remove(l.path) // no other process removes it while we listen
	}
	if lockErr == nil {
		forget(l.path)
		_ = unlock()
	}
	return errors.Join(err, l.ln.Close())
}
