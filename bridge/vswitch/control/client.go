package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/procfd"
)

// ErrNotRunning is returned if no switch listens on the socket.
var ErrNotRunning = errors.New("no such switch runs")

// A Client sends requests to one switch. Any goroutine may call its methods at any time: they wait
// for each other, and each ends with its context. After a request that was cancelled or got no
// reply, the Client is unusable.
type Client struct {
	conn *net.UnixConn
	path string
	pid  int
	uid  int
	gid  int

	mu     sync.Mutex
	broken error
}

// Dial connects to the switch with that name, or with that socket path if the name has a slash. If
// no switch listens, the error matches ErrNotRunning with errors.Is. Dial also connects to a switch
// that is suspended (SIGSTOP): the contexts of the methods limit the wait for a reply.
//
// The switch must run as this user or root, since it is given files. Root may connect to any user's
// switch. The caller must close the Client.
func Dial(ctx context.Context, name string) (*Client, error) {
	path, err := Path(name)
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("switch %s: %w", name, err)
	}
	return c, nil
}

// DialFound connects to another user's switch that Running has found. That user controls the path
// and may replace it at any time. So DialFound follows no symbolic link, and connects only to a
// socket that the user owns and listens on.
func DialFound(ctx context.Context, path string) (*Client, error) {
	owner, ok := DirOwner(path)
	r, err := procfd.ReferWithin(path)
	if err == nil {
		defer r.Close()
		if !ok || !r.IsSocket() || r.UID != owner {
			err = fmt.Errorf("it is not a socket of user %d", owner)
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, path)
	}
	if err != nil {
		return nil, fmt.Errorf("switch %s: %w", path, err)
	}
	c, err := dial(ctx, r.Path())
	if err == nil && c.uid != owner {
		err = errors.Join(fmt.Errorf("user %d listens there", c.uid), c.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("switch %s: %w", path, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unixpacket", path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, path)
	case errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf("connect to %s: %w (its queue of connections is full: check whether it is suspended)",
			path, err)
	case err != nil:
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn), path: path}
	peer, err := fdpass.PeerOf(c.conn)
	c.pid, c.uid, c.gid = int(peer.Pid), int(peer.Uid), int(peer.Gid)
	if self := os.Geteuid(); err == nil && self != 0 && c.uid != self && c.uid != 0 {
		err = fmt.Errorf("process %d of user %d listens on %s: want your own process or root's", c.pid, c.uid, path)
	}
	if err != nil {
		_ = c.conn.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the connection. What was requested stays.
func (c *Client) Close() error { return c.conn.Close() }

// Peer returns the process that listens and its user, as the kernel reports them. Info returns what
// the switch reports.
func (c *Client) Peer() (pid, uid int) { return c.pid, c.uid }

// Groups returns the group and the supplementary groups of the process that listens, as the kernel
// reports them.
func (c *Client) Groups() (gid int, all []int, err error) {
	all, err = fdpass.PeerGroups(c.conn)
	return c.gid, all, err
}

// Path returns the path of the switch's socket.
func (c *Client) Path() string { return c.path }

// Info asks for the state of the switch as a whole.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info *Info
	err := c.ask(ctx, Request{Do: DoInfo}, nil, func(a *Reply) error {
		if a.Info != nil {
			info = a.Info
		}
		return nil
	})
	if err == nil && info == nil {
		err = errors.New("the reply of the switch is empty")
	}
	if err != nil {
		return Info{}, err
	}
	return *info, nil
}

// Ports asks for the switch's ports with their counters, sorted by name.
func (c *Client) Ports(ctx context.Context) (ports []Port, err error) {
	err = c.EachPort(ctx, func(p Port) error { ports = append(ports, p); return nil })
	return ports, err
}

// AddPort adds a port. files begin with a pidfd (pidfd_open(2)) of p.Holder unless that is 0, and
// the read end of p.Lifeline unless that is 0. The files for the port's kind follow. The caller
// keeps and closes its own copies. What the switch sets holds for those too: all become
// non-blocking, and for the queues of a tap see vswitch.OpenTap.
//
// If the name is taken, the error matches fs.ErrExist with errors.Is. If the settings or files are
// invalid, it matches brport.ErrInvalid.
func (c *Client) AddPort(ctx context.Context, p Port, files ...*os.File) error {
	p.Stats = nil
	if err := p.Validate(); err != nil {
		return err
	}
	return c.ask(ctx, Request{Do: DoAddPort, Port: &p}, files, nil)
}

// SetLabel changes a port's label. If there is no such port, the error matches fs.ErrNotExist with
// errors.Is.
func (c *Client) SetLabel(ctx context.Context, port, label string) error {
	return c.ask(ctx, Request{Do: DoSetLabel, Name: port, Label: label}, nil, nil)
}

// SetPort replaces all settings of a port while its frames pass (vswitch.SetPort). If there is no
// such port, the error matches fs.ErrNotExist with errors.Is; if another port is locked to one of
// its addresses, fs.ErrExist; if the switch does not accept the settings, or is of a version that
// cannot change them, brport.ErrInvalid.
func (c *Client) SetPort(ctx context.Context, port string, cfg vport.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	return c.ask(ctx, Request{Do: DoSetPort, Name: port, Config: &cfg}, nil, nil)
}

// Announce has the switch handle frames as if the port's guest had sent them, so that others learn
// where the guest is. Frames are without a vnet header, at most vswitch.MaxAnnounced of them. If
// there is no such port, the error matches fs.ErrNotExist with errors.Is.
func (c *Client) Announce(ctx context.Context, port string, frames [][]byte) error {
	return c.ask(ctx, Request{Do: DoAnnounce, Name: port, Frames: frames}, nil, nil)
}

// RemovePort removes a port, also one that another client has added. If there is no such port, the
// error matches fs.ErrNotExist with errors.Is.
func (c *Client) RemovePort(ctx context.Context, name string) error {
	return c.ask(ctx, Request{Do: DoRemovePort, Name: name}, nil, nil)
}

// FDB asks for the addresses that the switch knows, in sorted order.
func (c *Client) FDB(ctx context.Context) (entries []FDBEntry, err error) {
	err = c.EachFDB(ctx, func(e FDBEntry) error { entries = append(entries, e); return nil })
	return entries, err
}

// Flush removes the addresses learned behind a port, or behind all ports if port is empty.
func (c *Client) Flush(ctx context.Context, port string) error {
	return c.ask(ctx, Request{Do: DoFlush, Name: port}, nil, nil)
}

// AddStatic adds a static entry to the FDB. It uses only MAC, VLAN and Port of the entry.
func (c *Client) AddStatic(ctx context.Context, e FDBEntry) error {
	return c.ask(ctx, Request{Do: DoAddStatic, Entry: &e}, nil, nil)
}

// RemoveStatic removes an address from the FDB, whether static or learned. It uses only MAC and
// VLAN of the entry. If the address is unknown, the error matches fs.ErrNotExist with errors.Is.
func (c *Client) RemoveStatic(ctx context.Context, e FDBEntry) error {
	return c.ask(ctx, Request{Do: DoRemoveStatic, Entry: &e}, nil, nil)
}

// Stop stops the switch and waits until its ports are gone.
func (c *Client) Stop(ctx context.Context) error {
	if err := c.ask(ctx, Request{Do: DoStop}, nil, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.deadline(ctx)()
	c.broken = errors.New("the switch was stopped")
	_, err := c.conn.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("wait for the switch to end: %w", deadlineCause(ctx, err))
}

// ask sends a request and calls take with each message of the reply.
func (c *Client) ask(ctx context.Context, r Request, files []*os.File, take func(*Reply) error) error {
	err := c.exchange(ctx, r, files, func(a *Reply, _ []*os.File) error {
		if take == nil {
			return nil
		}
		return take(a)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", r.what(), err)
	}
	return nil
}

// what describes the request for an error.
func (r Request) what() string {
	name := r.Name
	if r.Port != nil {
		name = r.Port.Name
	}
	if name == "" {
		return r.Do
	}
	return fmt.Sprintf("%s %s", r.Do, name)
}

// A taker takes a message of a reply. Its files are closed afterwards.
type taker func(a *Reply, files []*os.File) error

// exchange sends a request and calls take with each message of the reply; nil takes nothing.
func (c *Client) exchange(ctx context.Context, r Request, files []*os.File, take taker) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message of %d bytes: want at most %d", len(b), MaxMessage)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	defer c.deadline(ctx)()
	refused, err := c.roundTrip(b, r.Do, files, take)
	if err != nil {
		c.broken = fmt.Errorf("the connection broke earlier: %w", err)
		return deadlineCause(ctx, err)
	}
	if refused != nil {
		return refused
	}
	return nil
}

var errHungUp = errors.New(
	"the switch has closed the connection: it has ended, or it does not serve this user (only its own user and root)")

func (c *Client) roundTrip(b []byte, do string, files []*os.File, take taker) (*Refusal, error) {
	err := fdpass.SendOver(c.conn, b, files...)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil, errHungUp
	}
	if err != nil {
		return nil, err
	}
	room, most := make([]byte, MaxMessage), maxAnswer(do)
	for messages, read := 0, 0; messages < maxMessages && read <= most; messages++ {
		payload, came, err := fdpass.ReceiveOver(c.conn, room, maxAnswerFiles(do))
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil, errHungUp
		}
		if err != nil {
			return nil, err
		}
		read += len(payload)
		var a Reply
		if err = json.Unmarshal(payload, &a); err != nil {
			err = fmt.Errorf("parse the reply of the switch: %w", err)
		} else if take != nil {
			err = take(&a, came)
		}
		fdpass.CloseAll(came)
		if err != nil {
			return nil, err
		}
		if !a.More {
			return a.Error, nil
		}
	}
	return nil, fmt.Errorf("the switch has sent more than %d bytes or %d messages without an end", most, maxMessages)
}

// deadline makes the connection's reads and writes end with ctx, until undo is called.
func (c *Client) deadline(ctx context.Context) (undo func()) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = c.conn.SetDeadline(time.Time{})
		}
	}
}

// deadlineCause returns the cause of ctx if err is a deadline error and ctx has ended, and
// otherwise err.
func deadlineCause(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("the switch does not answer: %w", context.Cause(ctx))
	}
	return err
}
