package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"vmnet/internal/kernel/fdpass"
)

// closePatience bounds how long Close waits for a daemon that does not answer.
const closePatience = time.Second

// Conn is an open connection to one daemon. Its methods may be called concurrently. The daemon
// processes five calls of a connection at a time (max_client_requests in libvirtd.conf) and queues
// the others. Close it.
type Conn struct {
	uri  string
	lib  *golibvirt.Libvirt
	wire *wire
	turn chan struct{} // held by the call that go-libvirt is sending
	done chan struct{} // closed when the connection has ended

	work sync.WaitGroup // goroutines with a call; Add only under mu, while err is nil

	mu       sync.Mutex
	err      error // why done is closed
	opened   bool
	sending  *call            // the holder of turn
	pending  map[uint32]*call // sent and unanswered, by serial number, including abandoned ones
	events   registry
	dropping int // registrations that are being ended
}

// newConn starts a connection. go-libvirt needs a handshake before its first call, in which the
// wire plays the daemon.
func newConn(uri string, uc *net.UnixConn) (*Conn, error) {
	c := &Conn{
		uri:     uri,
		turn:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: map[uint32]*call{},
		events:  newRegistry(),
	}
	c.wire = newWire(uc, c)
	c.lib = golibvirt.NewWithDialer(c.wire)
	err := c.lib.ConnectToURI(golibvirt.ConnectURI(uri))
	c.wire.connected()
	c.work.Go(c.wire.pong)
	if err != nil {
		c.fail(err)
		c.work.Wait()
		return nil, fmt.Errorf("go-libvirt: %w", err)
	}
	return c, nil
}

// URI returns [System] or [Session].
func (c *Conn) URI() string { return c.uri }

// Peer returns the process that listens at the daemon's socket: the daemon itself or the one that
// passed the socket to it (SO_PEERCRED, unix(7)). It is 0 if that process is in a PID namespace
// that is not visible from here.
func (c *Conn) Peer() (pid int, err error) {
	cred, err := fdpass.PeerOf(c.wire.UnixConn)
	return int(cred.Pid), err
}

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, and nil before that. The error matches one of [ErrClosed],
// [ErrNoConnection] and [ErrProtocol].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close asks the daemon to close the connection, waits at most a second for the answer, and ends
// the connection with all its calls and subscriptions.
func (c *Conn) Close() error {
	c.mu.Lock()
	polite := c.opened && c.err == nil
	c.opened = false
	c.mu.Unlock()
	if polite {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		if c.awaitQuiet(ctx) {
			_ = c.call(ctx, connectClose, c.lib.ConnectClose)
		}
		cancel()
	}
	c.fail(fmt.Errorf("%w by this side", ErrClosed))
	<-c.wire.idle
	c.work.Wait()
	return nil
}

// awaitQuiet waits until libvirt has answered every call, and reports whether it has. libvirt
// handles the calls of one connection in parallel, and libvirtd 9.0 has crashed when a client
// closed its connection while the call that ends a subscription ran. libvirtd survives a client
// that hangs up, which is all that is left to do if it does not answer.
func (c *Conn) awaitQuiet(ctx context.Context) bool {
	for {
		c.mu.Lock()
		quiet := c.sending == nil && len(c.pending) == 0 && c.dropping == 0
		ended := c.err != nil
		c.mu.Unlock()
		if quiet || ended {
			return quiet && !ended
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Millisecond):
		}
	}
}

// fail ends the connection. The first reason counts.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = reason
	close(c.done)
	_ = c.wire.UnixConn.Close()
}

// errEnded marks the end of the stream among the results of a read or write.
func errEnded(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return ErrClosed // fail has the reason
	}
	return fmt.Errorf("%w: the daemon hung up (was it restarted? Dial again): %w", ErrNoConnection, err)
}
