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
)

// System and Session are the URIs of the machine's guests and of the user's own.
const (
	System  = "qemu:///system"
	Session = "qemu:///session"
)

const (
	systemDir    = "/run/libvirt"
	connectRetry = 10 * time.Millisecond
	readOnlyFlag = 1 // VIR_CONNECT_RO
)

// Dialer says which daemon to talk to, and how.
type Dialer struct {
	// URI is libvirt's name of the driver; empty is [System]. Its parameter socket= is a Path:
	// qemu+unix:///system?socket=/run/libvirt/virtqemud-sock. It may name no other host.
	URI string
	// Path is the daemon's socket. Empty are those where libvirtd listens (or virtproxyd in
	// its place) and then virtqemud: in /run/libvirt for the system, in
	// $XDG_RUNTIME_DIR/libvirt for a session.
	Path string
	// ReadOnly allows nothing but looking, for which a user needs no rights: the system's daemons
	// have a socket of their own for it.
	ReadOnly bool
}

// Dial connects to a URI, or to the path of one of the system's sockets; "" is [System].
func Dial(ctx context.Context, target string) (*Conn, error) {
	if strings.HasPrefix(target, "/") {
		return Dialer{Path: target}.Dial(ctx)
	}
	return Dialer{URI: target}.Dial(ctx)
}

// Dial connects, proves who we are and opens the driver. ctx ends the attempt, not the
// connection. That no daemon listens Is [ErrNoConnection], that it does not let this
// user in Is [ErrAccessDenied].
func (d Dialer) Dial(ctx context.Context) (*Conn, error) {
	uri, paths, err := d.resolve()
	if err != nil {
		return nil, err
	}
	uc, path, err := connectFirst(ctx, paths)
	if err != nil {
		return nil, err
	}
	c := newConn(uc)
	c.uri = uri
	if err := c.open(ctx, uri, d.ReadOnly); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open %s at %s: %w", uri, path, err)
	}
	return c, nil
}

// resolve says which driver to open, and which sockets to try.
func (d Dialer) resolve() (uri string, paths []string, err error) {
	uri = d.URI
	if uri == "" {
		uri = System
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("libvirt URI: %w", err)
	case u.Scheme != "qemu" && u.Scheme != "qemu+unix", u.Host != "", u.Path != "/system" && u.Path != "/session":
		return "", nil, fmt.Errorf("libvirt URI %q: want %s or %s on this machine, other drivers and hosts are not supported", uri, System, Session)
	}
	uri = "qemu://" + u.Path // what the daemon, which has but local drivers, knows
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
	return uri, []string{filepath.Join(systemDir, "libvirt"+suffix), filepath.Join(systemDir, "virtqemud"+suffix)}, nil
}

// sessionSockets are where libvirt has a user's daemons listen: in g_get_user_runtime_dir().
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

// connectFirst connects to the first socket where somebody listens.
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
		return nil, "", fmt.Errorf("%w: %w (be root or in the group libvirt, or connect read-only)", ErrAccessDenied, err)
	}
	return nil, "", fmt.Errorf("%w: %w (is libvirtd or virtqemud running?)", ErrNoConnection, err)
}

// connect retries while the listener's backlog is full, which connect(2) on a
// unix socket that does not block tells by EAGAIN.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if errors.Is(err, context.DeadlineExceeded) {
			<-ctx.Done() // the dialer's clock may be ahead of it
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
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
	authList      = procedure{remoteProgram, 66, "AUTH_LIST"}
	authAskPolkit = procedure{remoteProgram, 70, "AUTH_POLKIT"}
	connectOpen   = procedure{remoteProgram, 1, "CONNECT_OPEN"}
	connectClose  = procedure{remoteProgram, 2, "CONNECT_CLOSE"}
)

// open does what comes before all other calls: AUTH_LIST, AUTH_POLKIT where it
// is asked for, CONNECT_OPEN.
func (c *Conn) open(ctx context.Context, uri string, readOnly bool) error {
	if err := c.authenticate(ctx); err != nil {
		return err
	}
	err := c.call(ctx, connectOpen, func(e *encoder) {
		e.present(true)
		e.string(uri)
		if readOnly {
			e.uint32(readOnlyFlag)
		} else {
			e.uint32(0)
		}
	}, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = err == nil
	return err
}

func (c *Conn) authenticate(ctx context.Context) error {
	offered := authNone
	err := c.call(ctx, authList, nil, func(d *decoder) {
		n := d.count(maxAuth, 4)
		for i := range n {
			if t := authType(d.uint32()); i == 0 || t == authNone {
				offered = t
			}
		}
	})
	if err != nil {
		return err
	}
	switch offered {
	case authNone: // also where the daemon knows by SO_PEERCRED that we are root
		return nil
	case authPolkit:
		return c.askPolkit(ctx)
	case authSASL:
		return fmt.Errorf("%w: the daemon wants SASL, which is not supported (set auth_unix_rw in its configuration to polkit or none, or connect read-only)", ErrAccessDenied)
	}
	return fmt.Errorf("%w: the daemon wants authentication of the unknown type %d", ErrAccessDenied, offered)
}

// askPolkit has the daemon ask polkit about us, which may ask the user if an agent of his runs.
func (c *Conn) askPolkit(ctx context.Context) error {
	var complete int32
	err := c.call(ctx, authAskPolkit, nil, func(d *decoder) { complete = d.int32() })
	const cure = "(polkit's action is org.libvirt.unix.manage: be root, in the group libvirt where the distribution allows that, or connect read-only)"
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
