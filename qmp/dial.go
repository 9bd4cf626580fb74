package qmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

const (
	// maxPath is what sockaddr_un's sun_path holds besides the final zero (unix(7)).
	maxPath = 107
	// connectRetry is the pause before the next attempt if the listen backlog is full.
	connectRetry = 20 * time.Millisecond
	// patience is how long a greeting may take before the monitor counts as busy.
	patience = 300 * time.Millisecond
)

// Peer is the process that called listen(2) on the socket: QEMU itself, unless QEMU has inherited
// the socket (SO_PEERCRED, unix(7)).
type Peer struct{ PID, UID, GID int }

// A Dialer connects to monitors. The zero value is what [Dial] uses.
type Dialer struct {
	// CheckPeer, if not nil, is called with the process that listens, before Dial waits for its
	// greeting or sends it anything. The pidfd of that process (SO_PEERPIDFD) is closed afterwards;
	// it is nil before Linux 6.5, or if the process has ended. An error ends Dial.
	CheckPeer func(p Peer, pidfd *os.File) error
	// Name, if not empty, stands for the socket's path in errors.
	Name string
	// In, if not nil, runs the function that connects, in the network namespace that has the
	// abstract socket ("@name"). Sockets with a path are not in a namespace.
	In func(connect func() error) error
	// Waiting, if not nil, is called once if there was no greeting within 0.3 s.
	Waiting func()
}

// Dial connects to the QMP socket at path, awaits the greeting and negotiates capabilities. QEMU
// greets one client at a time: while another one is connected, Dial waits until ctx ends, and then
// returns an error that matches [ErrBusy] and ctx.Err(). A missing socket (fs.ErrNotExist) or one
// without a listener (unix.ECONNREFUSED) is an error at once. A path may have any length.
func Dial(ctx context.Context, path string) (*Conn, error) { return Dialer{}.Dial(ctx, path) }

// Dial is [Dial] with d's hooks.
func (d Dialer) Dial(ctx context.Context, path string) (*Conn, error) {
	if d.Waiting == nil {
		d.Waiting = func() {}
	}
	d.Waiting = sync.OnceFunc(d.Waiting)
	name := cmp.Or(d.Name, path)
	uc, err := d.connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor %s: %w", name, err)
	}
	c := newConn(&socket{uc, make(chan struct{}, 1)})
	c.lastID = uint64(rand.Uint32()) // ids of a former client, whose replies may be late, differ
	if c.peer, err = peerOf(uc); err != nil {
		_ = uc.Close()
		return nil, fmt.Errorf("monitor %s: %w", name, err)
	}
	go c.read(uc)
	if err := d.shakeHands(ctx, c, uc); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("monitor %s: %w", name, err)
	}
	return c, nil
}

func (d Dialer) shakeHands(ctx context.Context, c *Conn, uc *net.UnixConn) error {
	if err := d.checkPeer(c.peer, uc); err != nil {
		return err
	}
	if err := d.awaitGreeting(ctx, c); err != nil {
		return err
	}
	return c.Execute(ctx, "qmp_capabilities", nil, nil)
}

func (d Dialer) checkPeer(p Peer, uc *net.UnixConn) error {
	if d.CheckPeer == nil {
		return nil
	}
	pidfd := fdpass.PeerPidfd(uc)
	if pidfd != nil {
		defer pidfd.Close()
	}
	return d.CheckPeer(p, pidfd)
}

func (d Dialer) awaitGreeting(ctx context.Context, c *Conn) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case c.version = <-c.greeting:
			return nil
		case <-timer.C:
			d.Waiting()
		case <-c.done:
			return c.Err()
		case <-ctx.Done():
			return fmt.Errorf("%w: no greeting, another client holds it or QEMU is stopped: %w", ErrBusy, ended(ctx))
		}
	}
}

// connect retries while the listener's backlog is full: a non-blocking connect(2) on a Unix socket
// then fails with EAGAIN.
func (d Dialer) connect(ctx context.Context, path string) (*net.UnixConn, error) {
	addr := path
	if len(path) > maxPath && path[0] != '@' {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = unix.Close(fd) }()
		addr = "/proc/self/fd/" + strconv.Itoa(fd)
	}
	start, full := time.Now(), false
	for {
		conn, err := d.try(ctx, addr)
		var errno syscall.Errno
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
			<-ctx.Done() // the dialer's clock may be ahead of it
		case !errors.As(err, &errno):
			return nil, err
		case errno != unix.EAGAIN:
			return nil, errno // without net.OpError's text, which names the fd instead of the path
		default:
			full = true
		}
		if time.Since(start) > patience {
			d.Waiting()
		}
		select {
		case <-time.After(connectRetry):
		case <-ctx.Done():
			if full {
				return nil, fmt.Errorf("%w: too many clients wait for it: %w", ErrBusy, ended(ctx))
			}
			return nil, ended(ctx)
		}
	}
}

// try makes one attempt, on one thread.
func (d Dialer) try(ctx context.Context, addr string) (uc *net.UnixConn, err error) {
	connect := func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", addr)
		if err == nil {
			uc = conn.(*net.UnixConn)
		}
		return err
	}
	if d.In == nil {
		err = connect()
	} else {
		err = d.In(connect)
	}
	return uc, err
}

func peerOf(uc *net.UnixConn) (Peer, error) {
	cred, err := fdpass.PeerOf(uc)
	if err != nil {
		return Peer{}, err
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}
