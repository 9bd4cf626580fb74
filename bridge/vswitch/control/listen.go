package control

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

	"vmnet/internal/rundir"
)

// ErrRunning is a switch that runs already.
var ErrRunning = errors.New("a switch of that name runs already")

// A Place is where a switch is about to listen, and nobody else meanwhile: its folder is locked (flock(2)) until Listen or Forget.
type Place struct {
	path   string
	unlock func()
}

// Prepare makes way for Listen, as long as this process has rights that it has not then: it makes the socket's folder, and
// removes a socket that a switch has left which was killed, and may have been another user's. One that runs is ErrRunning. It
// waits for others that start or end a switch there, up to 5 s.
//
// The folder is uid's, so that the switch can listen there, and remove what it has made, with that user's rights and no
// others. A name with a slash is the path, and its folder is left as it is. Where root's folder has one of that name that is
// this user's own, as a service manager makes it, that is taken.
func Prepare(name string, uid, gid int) (*Place, error) {
	var folderErr error
	p, err := prepareIn(func() (path string, err error) {
		path, folderErr = prepareFolder(name, uid, gid)
		return path, folderErr
	})
	if err != nil && folderErr == nil {
		err = fmt.Errorf("switch %s: %w", name, err)
	}
	return p, err
}

// prepareIn is Prepare for a socket whose folder that function makes: again, where somebody who had made it first has removed it
// meanwhile.
func prepareIn(folder func() (path string, err error)) (*Place, error) {
	const tries = 10
	for n := 1; ; n++ {
		path, err := folder()
		if err != nil {
			return nil, err
		}
		p, err := prepare(path)
		if n == tries || !errors.Is(err, errFolderGone) {
			return p, err
		}
	}
}

func prepare(path string) (*Place, error) {
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := clearPath(path); err != nil {
		unlock()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Place{path, unlock}, nil
}

// Listen makes the socket, as the function does, and ends the Place; with an error, that is for Forget to do.
func (p *Place) Listen() (*Listener, error) {
	l, err := listen(p.path)
	if err == nil {
		p.unlock()
	}
	return l, err
}

// Forget removes the folder that Prepare has made, if it is empty and this process may. It ends the Place.
func (p *Place) Forget() {
	forget(p.path)
	p.unlock()
}

func prepareFolder(name string, uid, gid int) (path string, err error) {
	if strings.Contains(name, "/") {
		return name, checkPath(name)
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	self := os.Geteuid()
	given := filepath.Join(rundir.System, "switch", name)
	if self != 0 && rundir.OwnedAlone(given, self) == nil {
		return filepath.Join(given, socketName), nil
	}
	dir, err := rundir.Make(rundir.Of(self, os.Getenv("XDG_RUNTIME_DIR")), self)
	if err == nil {
		dir, err = makeFolder(dir, name, uid, gid)
	}
	if err != nil {
		return "", fmt.Errorf("a folder for the socket: %w (or name a path: ./%s)", err, name)
	}
	path = filepath.Join(dir, socketName)
	return path, checkPath(path)
}

// forget removes a socket's own folder, if it is empty. The caller has locked it.
func forget(path string) {
	if filepath.Base(path) == socketName {
		_ = os.Remove(filepath.Dir(path))
	}
}

// makeFolder makes dir/switch/name, which becomes uid's, who must be able to get there.
func makeFolder(dir, name string, uid, gid int) (string, error) {
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

// takeBack makes a folder ours again that was made for a switch with another user's rights.
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
	file fs.FileInfo // the socket's, by which it is known
}

// Listen makes the socket, for this user alone. One that a switch has left which was killed is replaced; where a
// switch listens, or anything else is there, it is an error: ErrRunning, or one that names what is in the way.
//
// Two that want it at once are kept apart by a lock on its folder, which lasts no longer than this call.
func Listen(path string) (*Listener, error) {
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer unlock()
	return listen(path)
}

// listen is for who has locked the folder.
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
	// Who connects before that must be admitted all the same.
	if err = os.Chmod(path, 0o600); err == nil {
		l.file, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(path))
	}
	return l, nil
}

// clearPath removes a socket on which nobody listens.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("it is there, and is no socket: remove it, or name another path")
	}
	conn, err := net.DialTimeout("unixpacket", path, time.Second)
	switch {
	case err == nil:
		return errors.Join(ErrRunning, conn.Close())
	case errors.Is(err, syscall.EAGAIN): // more have connected than it has taken
		return ErrRunning
	case errors.Is(err, syscall.EPROTOTYPE):
		return errors.New("something else than a switch listens there: name another path")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return err
	}
	return os.Remove(path)
}

// lockPatience is how long others may hold the lock, who should do so for a few milliseconds.
const lockPatience = 5 * time.Second

func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			break
		}
		if time.Now().After(end) {
			err = fmt.Errorf("another process has locked %s for %v", dir, lockPatience)
			break
		}
	}
	if err == nil && !isStill(f, dir) {
		err = errFolderGone
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

var errFolderGone = fmt.Errorf("its folder was removed meanwhile: %w", fs.ErrNotExist)

// isStill tells whether a folder that was opened is the one of that path.
func isStill(f *os.File, dir string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(dir)
	return err == nil && os.SameFile(opened, now)
}

// Path is the socket's.
func (l *Listener) Path() string { return l.path }

// Close removes the socket, and its folder if that is empty then, and ends Serve. Where another process keeps the folder
// locked, the folder stays.
func (l *Listener) Close() error {
	unlock, lockErr := lockFolder(filepath.Dir(l.path))
	var err error
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.file) {
		err = os.Remove(l.path) // nobody else does, as long as we listen
	}
	if lockErr == nil {
		forget(l.path)
		unlock()
	}
	return errors.Join(err, l.ln.Close())
}
