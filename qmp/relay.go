package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"vmnet/internal/kernel/fdpass"
)

// Relay is another way to a QEMU's monitor than its own socket: through the process that holds the
// socket. Both methods may be called concurrently.
type Relay interface {
	// Command gives QEMU one command, a JSON object without an id, and with it a copy of f unless
	// that is nil. It returns QEMU's answer, {"return": ...} or {"error": ...}, with any id. Once
	// ctx has ended Command does not wait for the answer, but QEMU still receives the command. An
	// error that matches [ErrClosed] or [ErrProtocol] ends the Conn.
	Command(ctx context.Context, command string, f *os.File) (answer string, err error)
	// Event waits for the next event of QEMU, whatever its name. Its error ends the Conn, and
	// matches ErrClosed.
	Event(ctx context.Context) (Event, error)
	// Close is called once, when neither method is running or will be called.
	Close() error
}

const (
	// maxOrders bounds the commands that wait for their turn.
	maxOrders = 1024
	// leavePatience bounds the wait for the replies to undo commands that are left behind.
	leavePatience = time.Second
)

// relayed is a Relay as a way. QEMU gets one command at a time, in their order, which the process
// that relays them need not keep.
type relayed struct {
	relay  Relay
	ctx    context.Context // of all that Relay does
	cancel context.CancelFunc
	wake   chan struct{} // there is something in the queue, or was

	mu    sync.Mutex
	queue []*order
	ended bool // nothing takes orders from the queue any more
}

// order is a command that waits for its turn. It has its file.
type order struct {
	*pending
	ctx  context.Context // of the caller that waits for the answer
	text string
	f    *os.File
}

// Through returns a Conn over r. It owns r from then on, even if it returns an error. All of Conn
// works as it does over a socket, but is not a lock on the guest's configuration.
func Through(ctx context.Context, r Relay) (*Conn, error) {
	w := &relayed{relay: r, wake: make(chan struct{}, 1)}
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c := newConn(w)
	go w.serve(c)
	var reply struct {
		QEMU version `json:"qemu"`
	}
	if err := c.Execute(ctx, "query-version", nil, &reply); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("relayed monitor: %w", err)
	}
	c.version = reply.QEMU
	return c, nil
}

func (w *relayed) close() { w.cancel() }

// send queues the command.
func (w *relayed) send(ctx context.Context, c *Conn, p *pending, cmd command, f *os.File) (err error) {
	cmd.ID = 0 // libvirt sets its own, and fails on another
	text, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	o := &order{pending: p, ctx: ctx, text: string(text)}
	if f != nil {
		if o.f, err = duplicate(f); err != nil {
			return err
		}
	}
	if err := w.enqueue(c, o); err != nil {
		o.close()
		return err
	}
	return nil
}

func (w *relayed) enqueue(c *Conn, o *order) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case c.Err() != nil:
		return c.Err()
	case w.ended || len(w.queue) >= maxOrders:
		return fmt.Errorf("not sent, %d commands are waiting for QEMU to answer", len(w.queue))
	}
	w.queue = append(w.queue, o)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// next takes the first order from the queue; nil if it is empty.
func (w *relayed) next() *order {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil
	}
	o := w.queue[0]
	w.queue = w.queue[1:]
	return o
}

// serve is the Conn's reader.
func (w *relayed) serve(c *Conn) {
	var both sync.WaitGroup
	both.Go(func() { w.events(c) })
	both.Go(func() { w.orders(c) })
	both.Wait()
	_ = w.relay.Close()
	c.closeSubscriptions()
	close(c.idle)
}

func (w *relayed) events(c *Conn) {
	for {
		e, err := w.relay.Event(w.ctx)
		if err != nil {
			c.fail(err)
			return
		}
		c.publish(e)
	}
}

func (w *relayed) orders(c *Conn) {
	for w.ctx.Err() == nil {
		select {
		case <-w.wake:
		case <-w.ctx.Done():
		}
		for w.ctx.Err() == nil {
			o := w.next()
			if o == nil {
				break
			}
			w.fill(w.ctx, c, o)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, o := range w.queue {
		o.close()
	}
	w.queue = nil
}

// fill gives QEMU the command, unless its caller waits no longer, and delivers the answer.
func (w *relayed) fill(ctx context.Context, c *Conn, o *order) {
	defer o.close()
	if o.ctx.Err() != nil && !o.undoes {
		c.forget(o.pending)
		return
	}
	var a outcome
	text, err := w.relay.Command(ctx, o.text, o.f)
	if err == nil && len(text) > limitOf(o.pending) {
		err = fmt.Errorf("%w: longer than %d bytes: %q", ErrProtocol, limitOf(o.pending), cut([]byte(text[:maxEvent])))
	}
	if err == nil {
		a, err = parseAnswer(text)
	}
	if err != nil && ctx.Err() != nil {
		return // it still is pending
	}
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		c.fail(err)
	}
	a.failure = err
	c.forget(o.pending)
	o.reply <- a
}

func parseAnswer(text string) (a outcome, err error) {
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return a, fmt.Errorf("%w: %q: %w", ErrProtocol, cut([]byte(text)), err)
	}
	if a.Return == nil && a.Error == nil {
		return a, fmt.Errorf("%w: no answer: %q", ErrProtocol, cut([]byte(text)))
	}
	return a, nil
}

// leave passes on all undo commands that wait for their turn at once: the process that relays them
// may still do so when this one has ended. They come after the command whose answer is awaited, and
// their order does not matter.
func (w *relayed) leave(c *Conn) {
	ctx, cancel := context.WithTimeout(w.ctx, leavePatience)
	defer cancel()
	var all sync.WaitGroup
	for o := w.next(); o != nil; o = w.next() {
		if o.undoes {
			all.Go(func() { w.fill(ctx, c, o) })
		} else {
			o.close()
		}
	}
	all.Wait()
}

func (o *order) close() {
	if o.f != nil {
		_ = o.f.Close()
	}
}

// duplicate returns a copy of f, so the caller may close f earlier.
func duplicate(f *os.File) (*os.File, error) {
	own, err := fdpass.Duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	return own, nil
}
