package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"vmnet/internal/kernel/fdpass"
)

// closePatience bounds the goodbye to a daemon that does not answer.
const closePatience = time.Second

// Conn is an open connection to one daemon. Its methods may be called by many goroutines
// at once; the daemon works on five calls of a connection at a time (max_client_requests in
// libvirtd.conf) and leaves the others waiting. Close it.
type Conn struct {
	uri   string
	uc    *net.UnixConn
	out   chan *call    // to the writer
	pongs chan struct{} // owed to the daemon: more than one is as good as one
	done  chan struct{} // closed when the connection has failed
	idle  chan struct{} // closed when reader and writer have ended

	background sync.WaitGroup // deregistrations

	mu         sync.Mutex
	err        error // why done is closed
	opened     bool
	lastSerial uint32
	pending    map[uint32]*call
	events     registry
	dropping   int // registrations whose end is under way
}

// procedure is one of a program's.
type procedure struct {
	program uint32
	number  int32
	name    string // without REMOTE_PROC_ or QEMU_PROC_
}

// call is one that was sent, or is about to be. It stays listed until its reply has come,
// whether or not somebody still waits. Of forgotten ones there are as many as fit into the socket.
type call struct {
	procedure
	serial    uint32
	packet    []byte
	fds       descriptors  // copies; who has the call closes them
	reply     chan message // has room for the one reply
	abandoned bool         // nobody waits; under Conn.mu
	registers *registration
}

// URI is [System] or [Session].
func (c *Conn) URI() string { return c.uri }

// Peer is the process that listens at the daemon's socket: the daemon, or who has started it there (SO_PEERCRED,
// unix(7)). It is 0 where that is in a process namespace that cannot be seen from here.
func (c *Conn) Peer() (pid int, err error) {
	cred, err := fdpass.PeerOf(c.uc)
	return int(cred.Pid), err
}

func newConn(uc *net.UnixConn) *Conn {
	c := &Conn{
		uc:      uc,
		out:     make(chan *call),
		pongs:   make(chan struct{}, 1),
		done:    make(chan struct{}),
		idle:    make(chan struct{}),
		pending: map[uint32]*call{},
		events:  newRegistry(),
	}
	var both sync.WaitGroup
	both.Go(c.read)
	both.Go(c.write)
	go func() {
		both.Wait()
		c.endEvents()
		close(c.idle)
	}()
	return c
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended, and is nil before. It Is [ErrClosed],
// [ErrNoConnection] or [ErrProtocol].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close says goodbye, waiting a second for the answer at most, and ends the connection with
// all its calls and subscriptions.
func (c *Conn) Close() error {
	c.mu.Lock()
	polite := c.opened && c.err == nil
	c.opened = false
	c.mu.Unlock()
	if polite {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		if c.awaitQuiet(ctx) {
			_ = c.call(ctx, connectClose, nil, nil)
		}
		cancel()
	}
	c.fail(fmt.Errorf("%w by this side", ErrClosed))
	<-c.idle
	c.background.Wait()
	return nil
}

// awaitQuiet waits until libvirt has answered everything, the ends of subscriptions before all: it works on a
// connection's calls side by side, and 9.0 has crashed when it was told to close the connection while it ended one. Where it
// does not answer, hanging up must do, which it outlives.
func (c *Conn) awaitQuiet(ctx context.Context) bool {
	for {
		c.mu.Lock()
		quiet, ended := len(c.pending) == 0 && c.dropping == 0, c.err != nil
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

// fail ends the connection; the first reason stays.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = reason
	close(c.done)
	_ = c.uc.Close()
}

// call runs a procedure. args writes its arguments, result reads what it returns; both may be
// nil. A refusal is an [*Error]. When ctx ends first, the error Is ctx's, and the daemon may or may
// not do as told; the connection stays usable. When the connection ends, the error is [Conn.Err]'s.
func (c *Conn) call(ctx context.Context, p procedure, args func(*encoder), result func(*decoder)) error {
	files, err := c.callWithFiles(ctx, p, args, result, nil)
	fdpass.CloseAll(files)
	return err
}

// callWithFiles is call with copies of files sent along. The files returned are the caller's.
func (c *Conn) callWithFiles(ctx context.Context, p procedure, args func(*encoder), result func(*decoder), files []*os.File) ([]*os.File, error) {
	m, err := c.roundTrip(ctx, &call{procedure: p}, args, files)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	if err := m.decode(p.name, result); err != nil {
		fdpass.CloseAll(m.files)
		return nil, err
	}
	return m.files, nil
}

func (m *message) decode(name string, result func(*decoder)) error {
	if m.status == statusError {
		return decodeError(name, m.payload)
	}
	d := decoder{buf: m.payload}
	if result != nil {
		result(&d)
	}
	if err := d.end(); err != nil {
		return fmt.Errorf("%s: %w: reply: %w", name, ErrProtocol, err)
	}
	return nil
}

func (c *Conn) roundTrip(ctx context.Context, p *call, args func(*encoder), files []*os.File) (message, error) {
	if err := c.list(p); err != nil {
		return message{}, err
	}
	if err := c.hand(ctx, p, args, files); err != nil {
		c.unlist(p)
		return message{}, err
	}
	return c.await(ctx, p)
}

// hand makes the packet and gives it to the writer. From then on it is sent whole even if
// ctx ends, since half a packet would end the connection.
func (c *Conn) hand(ctx context.Context, p *call, args func(*encoder), files []*os.File) error {
	h := header{p.program, programVersion, p.number, typeCall, p.serial, statusOK}
	if len(files) > 0 {
		h.kind = typeCallWithFiles
	}
	var err error
	if p.packet, err = encode(h, len(files), args); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if p.fds, err = duplicate(files); err != nil {
		return err
	}
	select {
	case c.out <- p:
		return nil
	case <-c.done:
		err = c.Err()
	case <-ctx.Done():
		err = fmt.Errorf("not sent, libvirt does not read its socket: %w", context.Cause(ctx))
	}
	p.fds.close()
	return err
}

// await waits for the reply; one that has come counts more than an end.
func (c *Conn) await(ctx context.Context, p *call) (message, error) {
	var cause error
	select {
	case m := <-p.reply:
		return m, nil
	case <-c.idle:
		cause = fmt.Errorf("no reply, so it may or may not have been done: %w", c.Err())
	case <-ctx.Done():
		cause = fmt.Errorf("no reply yet, it may still be done: %w", context.Cause(ctx))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case m := <-p.reply:
		return m, nil
	default:
		p.abandoned = true
		return message{}, cause
	}
}

// list gives the call its serial and expects the reply.
func (c *Conn) list(p *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	for c.lastSerial++; c.lastSerial == 0 || c.pending[c.lastSerial] != nil; c.lastSerial++ {
	}
	p.serial, p.reply = c.lastSerial, make(chan message, 1)
	c.pending[p.serial] = p
	if p.registers != nil {
		c.events.expected = true
	}
	return nil
}

// unlist takes a call back that was never sent.
func (c *Conn) unlist(p *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, p.serial)
	if p.registers != nil {
		c.events.settle()
	}
}

// errEnded tells an end of the stream from what else a read or write may say.
func errEnded(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return ErrClosed // fail has said why
	}
	return fmt.Errorf("%w: the daemon hung up (was it restarted? Dial again): %w", ErrNoConnection, err)
}
