package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Conn is a negotiated connection to one QEMU's monitor. Its methods may be called concurrently.
// Close it.
type Conn struct {
	way     way
	peer    Peer
	version version

	greeting chan version
	passing  chan struct{} // holds a token while a command with an fd is unanswered
	done     chan struct{} // closed when the connection has failed
	idle     chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	err     error // why done is closed
	lastID  uint64
	pending map[uint64]*pending
	subs    map[*Subscription]struct{} // nil once the reader has ended
	silent  bool                       // an undo command was not answered in time
}

// way is how a Conn's commands reach QEMU: its socket, or a Relay. It has a reader, which
// distributes what arrives and closes Conn.idle when it ends.
type way interface {
	// send passes one command on, whole or not at all and after the earlier ones, with a copy of f
	// unless f is nil. It may end the connection.
	send(ctx context.Context, c *Conn, p *pending, cmd command, f *os.File) error
	// leave makes sure that QEMU runs the undo commands that it has not answered.
	leave(c *Conn)
	// close ends the reader. Conn.mu is held.
	close()
}

// pending is a command that was sent, or is about to be. It stays listed until its reply has
// arrived, whether or not a caller still waits.
type pending struct {
	command string
	id      uint64
	reply   chan outcome // has room for the one reply
	passes  bool         // carries an fd
	undoes  bool         // must reach QEMU even if nobody waits
}

// command is a request of QMP.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id,omitempty"`
}

func newConn(w way) *Conn {
	return &Conn{
		way:      w,
		greeting: make(chan version, 1),
		passing:  make(chan struct{}, 1),
		done:     make(chan struct{}),
		idle:     make(chan struct{}),
		pending:  map[uint64]*pending{},
		subs:     map[*Subscription]struct{}{},
	}
}

// Peer returns the process that listened on the socket when the connection was made. Through a
// [Relay] it is zero.
func (c *Conn) Peer() Peer { return c.peer }

// Version returns QEMU's version from the greeting: 7, 2, 22.
func (c *Conn) Version() (major, minor, micro int) {
	return c.version.Major, c.version.Minor, c.version.Micro
}

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, and nil before. The error matches [ErrClosed] or
// [ErrProtocol].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, and with it all commands and subscriptions. It leaves undo commands
// that a stopped or very busy QEMU has not answered yet for QEMU to run.
func (c *Conn) Close() error {
	if c.owes() {
		c.way.leave(c)
	}
	c.fail(fmt.Errorf("%w: closed by this side", ErrClosed))
	<-c.idle
	return nil
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
	c.way.close()
}

// Execute runs a command and decodes what it returns into reply. args is nil or marshals to a JSON
// object; reply is nil or a pointer. A refusal by QEMU is an [*Error]. If ctx ends first, the error
// matches ctx.Err(), and QEMU may or may not run the command. If the connection ends, it matches
// [ErrClosed] or [ErrProtocol]. A message from QEMU may have up to 1 MiB, the reply to
// query-qmp-schema 8 MiB.
func (c *Conn) Execute(ctx context.Context, command string, args, reply any) error {
	p, err := c.send(ctx, &pending{command: command}, args, nil)
	if err != nil {
		return err
	}
	return c.await(ctx, p, reply)
}

// ExecuteFD is [Conn.Execute] with a copy of f sent along (SCM_RIGHTS); f stays
// the caller's, who may close it once ExecuteFD has returned.
//
// Only one such command is in flight at a time, since QEMU keeps one received fd: the next one
// waits for the reply to the former one, even if no caller does any more.
func (c *Conn) ExecuteFD(ctx context.Context, command string, args any, f *os.File, reply any) error {
	if f == nil {
		return fmt.Errorf("%s: no file to pass", command)
	}
	p, err := c.send(ctx, &pending{command: command, passes: true}, args, f)
	if err != nil {
		return err
	}
	return c.await(ctx, p, reply)
}

// send writes the command and returns it listed as pending.
func (c *Conn) send(ctx context.Context, p *pending, args any, f *os.File) (*pending, error) {
	if p.passes {
		if err := c.acquire(ctx, c.passing); err != nil {
			return nil, fmt.Errorf("%s: earlier command with an fd is unanswered: %w", p.command, err)
		}
	}
	c.register(p)
	if err := c.way.send(ctx, c, p, command{p.command, args, p.id}, f); err != nil {
		c.forget(p)
		return nil, fmt.Errorf("%s: %w", p.command, err)
	}
	return p, nil
}

// await waits for the reply. A reply that has arrived takes precedence over the end of the
// connection.
func (c *Conn) await(ctx context.Context, p *pending, reply any) error {
	var cause error
	select {
	case o := <-p.reply:
		return o.decode(p.command, reply)
	case <-c.idle:
		cause = c.Err()
	case <-ctx.Done():
		cause = fmt.Errorf("%w: %w", errNoReply, ended(ctx))
	}
	select {
	case o := <-p.reply:
		return o.decode(p.command, reply)
	default:
		return fmt.Errorf("%s: %w", p.command, cause)
	}
}

// acquire takes one of the connection's tokens.
func (c *Conn) acquire(ctx context.Context, token chan<- struct{}) error {
	select {
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ended(ctx)
	default:
	}
	select {
	case token <- struct{}{}:
		return nil
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (c *Conn) register(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	p.id, p.reply = c.lastID, make(chan outcome, 1)
	c.pending[p.id] = p
}

// forget removes a command from the list: it was answered, or never sent.
func (c *Conn) forget(p *pending) {
	c.mu.Lock()
	_, listed := c.pending[p.id]
	delete(c.pending, p.id)
	c.mu.Unlock()
	if listed && p.passes {
		<-c.passing
	}
}

func (o *outcome) decode(command string, reply any) error {
	switch {
	case o.failure != nil:
		return fmt.Errorf("%s: %w", command, o.failure)
	case o.Error != nil:
		return &Error{Command: command, Class: o.Error.Class, Desc: o.Error.Desc}
	case reply == nil:
		return nil
	}
	if err := json.Unmarshal(o.Return, reply); err != nil {
		return fmt.Errorf("%s: decode the reply: %w", command, errors.Join(ErrProtocol, err))
	}
	return nil
}
