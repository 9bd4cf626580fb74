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

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/procfd"
)

// ErrNotRunning is a switch that nobody runs.
var ErrNotRunning = errors.New("no such switch runs")

// A Client asks one switch. Its methods may be called at any time, by any goroutine: they wait for each other, and each of
// them ends with its context. One that ended so, or that the switch did not answer, leaves the Client unusable.
type Client struct {
	conn *net.UnixConn
	pid  int
	uid  int

	mu     sync.Mutex
	broken error
}

// Dial connects to the switch of a name, or of the socket's path where the name has a slash. An error Is ErrNotRunning where
// nobody listens. A switch that stands still may be connected to: it is the methods' contexts that bound the wait.
//
// Who listens must be this user or root, unless this user is root: it is given files. Close the Client.
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

// DialFound connects to a switch of another user's that Running has found. What is there is that user's choice, and may be
// replaced at any time: nothing but a socket of that user's own is connected to, on which that user listens, and no
// symbolic link is followed to it.
func DialFound(ctx context.Context, path string) (*Client, error) {
	owner, ok := FolderOwner(path)
	r, err := procfd.ReferWithin(path)
	if err == nil {
		defer r.Close()
		if !ok || !r.IsSocket() || r.UID != owner {
			err = fmt.Errorf("it is no socket of user %d", owner)
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
		return nil, fmt.Errorf("connect to %s: %w (it does not answer others either: is it stopped?)", path, err)
	case err != nil:
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn)}
	peer, err := fdpass.PeerOf(c.conn)
	c.pid, c.uid = int(peer.Pid), int(peer.Uid)
	if self := os.Geteuid(); err == nil && self != 0 && c.uid != self && c.uid != 0 {
		err = fmt.Errorf("process %d of user %d listens on %s: want your own or root's", c.pid, c.uid, path)
	}
	if err != nil {
		_ = c.conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. What was asked for stays.
func (c *Client) Close() error { return c.conn.Close() }

// Peer is the process that listens, and the user who runs it, as the kernel says; Info is what it says itself.
func (c *Client) Peer() (pid, uid int) { return c.pid, c.uid }

// Info is the switch as a whole.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info *Info
	err := c.ask(ctx, request{Do: doInfo}, nil, func(a *answer) error {
		if a.Info != nil {
			info = a.Info
		}
		return nil
	})
	if err == nil && info == nil {
		err = errors.New("the switch told nothing of itself")
	}
	if err != nil {
		return Info{}, err
	}
	return *info, nil
}

// Ports are the switch's ports with their counters, in the order of their names.
func (c *Client) Ports(ctx context.Context) (ports []Port, err error) {
	err = c.EachPort(ctx, func(p Port) error { ports = append(ports, p); return nil })
	return ports, err
}

// AddPort plugs a port in. files are a pidfd (pidfd_open(2)) of p.Holder, unless that is 0, the reading end of p.Lifeline,
// unless that is 0, and then what the port's kind is made of; the caller keeps, and closes, its own copies. What is set on them holds for those too: all become
// non-blocking, and see vswitch.OpenTap.
//
// A name that is taken is an error that Is fs.ErrExist; settings or files that make no port, one that Is bridge.ErrInvalid.
func (c *Client) AddPort(ctx context.Context, p Port, files ...*os.File) error {
	p.Stats = nil
	if err := p.Validate(); err != nil {
		return err
	}
	return c.ask(ctx, request{Do: doAddPort, Port: &p}, files, nil)
}

// SetLabel changes a port's label. No such port is an error that Is fs.ErrNotExist.
func (c *Client) SetLabel(ctx context.Context, port, label string) error {
	return c.ask(ctx, request{Do: doSetLabel, Name: port, Label: label}, nil, nil)
}

// RemovePort unplugs a port, whoever plugged it in. No such port is an error that Is fs.ErrNotExist.
func (c *Client) RemovePort(ctx context.Context, name string) error {
	return c.ask(ctx, request{Do: doRemovePort, Name: name}, nil, nil)
}

// FDB is what addresses the switch knows, in their order.
func (c *Client) FDB(ctx context.Context) (entries []FDBEntry, err error) {
	err = c.EachFDB(ctx, func(e FDBEntry) error { entries = append(entries, e); return nil })
	return entries, err
}

// Flush forgets what was learned behind a port, or behind all where that is empty.
func (c *Client) Flush(ctx context.Context, port string) error {
	return c.ask(ctx, request{Do: doFlush, Name: port}, nil, nil)
}

// AddStatic notes an address of a port's for good: MAC, VLAN and Port of the entry count.
func (c *Client) AddStatic(ctx context.Context, e FDBEntry) error {
	return c.ask(ctx, request{Do: doAddStatic, Entry: &e}, nil, nil)
}

// RemoveStatic forgets an address, a static or a learned one: MAC and VLAN of the entry count. One that is not
// known is an error that Is fs.ErrNotExist.
func (c *Client) RemoveStatic(ctx context.Context, e FDBEntry) error {
	return c.ask(ctx, request{Do: doRemoveStatic, Entry: &e}, nil, nil)
}

// Stop ends the switch, and waits until its ports are gone.
func (c *Client) Stop(ctx context.Context) error {
	if err := c.ask(ctx, request{Do: doStop}, nil, nil); err != nil {
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
	return fmt.Errorf("wait for the switch to end: %w", told(ctx, err))
}

// ask sends a request and takes its answers, each of which take is given.
func (c *Client) ask(ctx context.Context, r request, files []*os.File, take func(*answer) error) error {
	if err := c.exchange(ctx, r, files, take); err != nil {
		return fmt.Errorf("%s: %w", r.what(), err)
	}
	return nil
}

// what is the request in words.
func (r request) what() string {
	name := r.Name
	if r.Port != nil {
		name = r.Port.Name
	}
	if name == "" {
		return r.Do
	}
	return fmt.Sprintf("%s %s", r.Do, name)
}

func (c *Client) exchange(ctx context.Context, r request, files []*os.File, take func(*answer) error) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("a message of %d bytes: want at most %d", len(b), maxMessage)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	defer c.deadline(ctx)()
	refused, err := c.roundTrip(b, maxAnswer(r.Do), files, take)
	if err != nil {
		c.broken = fmt.Errorf("the connection broke earlier: %w", err)
		return told(ctx, err)
	}
	if refused != nil {
		return refused
	}
	return nil
}

var errHungUp = errors.New("the switch has hung up: it has ended, or it serves another user (its own and root alone)")

func (c *Client) roundTrip(b []byte, most int, files []*os.File, take func(*answer) error) (*refusal, error) {
	err := fdpass.SendOver(c.conn, b, files...)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil, errHungUp
	}
	if err != nil {
		return nil, err
	}
	room := make([]byte, maxMessage)
	for messages, read := 0, 0; messages < maxMessages && read <= most; messages++ {
		payload, _, err := fdpass.ReceiveOver(c.conn, room, 0)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil, errHungUp
		}
		if err != nil {
			return nil, err
		}
		read += len(payload)
		var a answer
		if err := json.Unmarshal(payload, &a); err != nil {
			return nil, fmt.Errorf("answer of the switch: %w", err)
		}
		if take != nil {
			if err := take(&a); err != nil {
				return nil, err
			}
		}
		if !a.More {
			return a.Error, nil
		}
	}
	return nil, fmt.Errorf("the switch has sent more than %d bytes or %d messages, and no end", most, maxMessages)
}

// deadline has the connection's reads and writes end with ctx, until the function that it returns is called.
func (c *Client) deadline(ctx context.Context) (undo func()) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = c.conn.SetDeadline(time.Time{})
		}
	}
}

// told is the context's error where that is why err came.
func told(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("the switch does not answer: %w", context.Cause(ctx))
	}
	return err
}
