package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// System and Session are the URIs of the machine's guests and of the user's own guests.
const (
	System  = "qemu:///system"
	Session = "qemu:///session"
)

const (
	systemDir    = "/run/libvirt"
	connectRetry = 10 * time.Millisecond
)

// Dialer selects the daemon and the kind of connection. The zero value is a connection to [System].
type Dialer struct {
	// URI is libvirt's name of the driver; empty means [System]. Its parameter socket= is a Path:
	// qemu+unix:///system?socket=/run/libvirt/virtqemud-sock. It may not name another host.
	URI string
	// Path is the daemon's socket. If it is empty, the sockets of libvirtd (or virtproxyd in its
	// place) and of virtqemud are tried in this order: in /run/libvirt for the system, in
	// $XDG_RUNTIME_DIR/libvirt for a session.
	Path string
	// ReadOnly requests a connection that can only query, for which a user needs no privilege: the
	// system daemons have a separate socket for it.
	ReadOnly bool
}

// Dial connects to a URI, or to the path of one of the system's sockets; "" means [System].
func Dial(ctx context.Context, target string) (*Conn, error) {
	if strings.HasPrefix(target, "/") {
		return Dialer{Path: target}.Dial(ctx)
	}
	return Dialer{URI: target}.Dial(ctx)
}

// Dial connects, authenticates and opens the driver. ctx ends the attempt, not the connection. The
// error matches [ErrNoConnection] if no daemon listens, and [ErrAccessDenied] if the daemon refuses
// this user.
func (d Dialer) Dial(ctx context.Context) (*Conn, error) {
	uri, paths, err := d.resolve()
	if err != nil {
		return nil, err
	}
	uc, path, err := connectFirst(ctx, paths)
	if err != nil {
		return nil, err
	}
	c, err := newConn(uri, uc)
	if err != nil {
		return nil, err
	}
	if err := c.open(ctx, d.ReadOnly); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open %s at %s: %w", uri, path, err)
	}
	return c, nil
}

// resolve returns the driver to open and the sockets to try.
func (d Dialer) resolve() (uri string, paths []string, err error) {
	uri = d.URI
	if uri == "" {
		uri = System
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("libvirt URI: %w", err)
	case u.Scheme != "qemu" && u.Scheme != "qemu+unix",
		u.Host != "",
		u.Path != "/system" && u.Path != "/session":
		return "", nil, fmt.Errorf("libvirt URI %q: want %s or %s (no other driver or host is supported)",
			uri, System, Session)
	}
	uri = "qemu://" + u.Path // the form that the daemon accepts: a driver without a transport
	switch socket := u.Query().Get("socket"); {
	case d.Path != "":
		return uri, []string{d.Path}, nil
	case socket != "":
		return uri, []string{socket}, nil
	case uri == Session:
		paths, err = sessionSockets()
		return uri, paths, err
	}
	suffix := "-sock"
	if d.ReadOnly {
		suffix = "-sock-ro"
	}
	return uri, []string{
		filepath.Join(systemDir, "libvirt"+suffix),
		filepath.Join(systemDir, "virtqemud"+suffix),
	}, nil
}

// sessionSockets returns where a user's daemons listen: in g_get_user_runtime_dir().
func sessionSockets() ([]string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		var err error
		if dir, err = os.UserCacheDir(); err != nil {
			return nil, fmt.Errorf("where is libvirt's session socket: %w (set XDG_RUNTIME_DIR)", err)
		}
	}
	dir = filepath.Join(dir, "libvirt")
	return []string{filepath.Join(dir, "libvirt-sock"), filepath.Join(dir, "virtqemud-sock")}, nil
}

// connectFirst connects to the first socket that has a listener.
func connectFirst(ctx context.Context, paths []string) (*net.UnixConn, string, error) {
	var errs []error
	for _, path := range paths {
		uc, err := connect(ctx, path)
		if err == nil {
			return uc, path, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	err := errors.Join(errs...)
	switch {
	case ctx.Err() != nil:
		return nil, "", fmt.Errorf("connect to libvirt: %w", context.Cause(ctx))
	case errors.Is(err, syscall.EACCES):
		const cure = "(be root or in the group libvirt, or connect read-only)"
		return nil, "", fmt.Errorf("%w: %w %s", ErrAccessDenied, err, cure)
	}
	return nil, "", fmt.Errorf("%w: %w (is libvirtd or virtqemud running?)", ErrNoConnection, err)
}

// connect retries while the listener's backlog is full, for which connect(2) on a non-blocking unix
// socket returns EAGAIN.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	full := false
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return conn.(*net.UnixConn), nil
		case errors.Is(err, context.DeadlineExceeded) && full:
			<-ctx.Done() // the dialer's clock may be ahead of it
		case !errors.Is(err, syscall.EAGAIN):
			return nil, err
		default:
			full = true
		}
		select {
		case <-time.After(connectRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: too many clients wait for it: %w", path, context.Cause(ctx))
		}
	}
}

// authType is remote_auth_type.
type authType uint32

const (
	authNone   authType = 0
	authSASL   authType = 1
	authPolkit authType = 2
)

var (
	authList = procedure{remoteProgram, 66, "AUTH_LIST", func(d *decoder) {
		for range d.count(maxAuth, 4) {
			d.uint32()
		}
	}}
	authAskPolkit = procedure{remoteProgram, 70, "AUTH_POLKIT", aNumber}
	connectOpen   = procedure{remoteProgram, 1, "CONNECT_OPEN", nil}
	connectClose  = procedure{remoteProgram, 2, "CONNECT_CLOSE", nil}
)

// open makes the first calls of a connection: AUTH_LIST, AUTH_POLKIT if the daemon requires it, and
// CONNECT_OPEN. go-libvirt's own handshake would ignore polkit's answer and a demand for SASL, and
// never requests a read-only connection.
func (c *Conn) open(ctx context.Context, readOnly bool) error {
	if err := c.authenticate(ctx); err != nil {
		return err
	}
	var flags golibvirt.ConnectFlags
	if readOnly {
		flags = golibvirt.ConnectRo
	}
	err := c.call(ctx, connectOpen, func() error {
		return c.lib.ConnectOpen(golibvirt.OptString{c.uri}, flags)
	}, c.uri)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = err == nil
	return err
}

func (c *Conn) authenticate(ctx context.Context) error {
	offers, err := ask(ctx, c, &call{procedure: authList}, c.lib.AuthList)
	if err != nil {
		return err
	}
	wanted := authNone
	for i, t := range offers {
		if offer := authType(t); i == 0 || offer == authNone {
			wanted = offer
		}
	}
	switch wanted {
	case authNone: // also if the daemon knows by SO_PEERCRED that we are root
		return nil
	case authPolkit:
		return c.askPolkit(ctx)
	case authSASL:
		const cure = "(set auth_unix_rw = \"polkit\" in its configuration, or connect read-only)"
		return fmt.Errorf("%w: the daemon requires SASL, which is not supported %s", ErrAccessDenied, cure)
	}
	return fmt.Errorf("%w: the daemon requires the unknown authentication type %d", ErrAccessDenied, wanted)
}

// askPolkit makes the daemon ask polkit about this client. polkit may ask the user, through an
// agent.
func (c *Conn) askPolkit(ctx context.Context) error {
	complete, err := ask(ctx, c, &call{procedure: authAskPolkit}, c.lib.AuthPolkit)
	const cure = "(be root or in the group libvirt, or connect read-only; " +
		"the action is org.libvirt.unix.manage)"
	var refusal *Error
	switch {
	case errors.As(err, &refusal):
		return fmt.Errorf("%w: polkit does not let this user in: %w %s", ErrAccessDenied, err, cure)
	case err != nil:
		return err
	case complete == 0:
		return fmt.Errorf("%w: polkit has not let this user in %s", ErrAccessDenied, cure)
	}
	return nil
}
