package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Relay is another way to a QEMU's monitor than its own socket: through whoever holds that. Both
// methods may be called at once.
type Relay interface {
	// Command gives QEMU one command, a JSON object without an id, and with it a copy of f unless
	// that is nil. It returns QEMU's answer, {"return": ...} or {"error": ...}, whatever id that
	// has. Once ctx has ended nobody waits for the answer, but what was given to QEMU still reaches
	// it. An error that Is [ErrClosed] or [ErrProtocol] ends the Conn.
	Command(ctx context.Context, command string, f *os.File) (answer string, err error)
	// Event waits for the next of QEMU's events, all of them. Its error ends the Conn, and Is
	// ErrClosed.
	Event(ctx context.Context) (Event, error)
	// Close is called once, when neither method is running or will be called.
	Close() error
}

const (
	// maxOrders bounds the commands that wait for their turn.
	maxOrders = 1024
	// leavePatience bounds the wait for undo commands to be answered that are left behind.
	leavePatience = time.Second
)

// relayed is a Relay as a way: QEMU gets one command at a time, in their order, since who relays
// them need not keep it.
type relayed struct {
	relay  Relay
	ctx    context.Context // of all that Relay does
	cancel context.CancelFunc
	wake   chan struct{} // there is something in the queue, or was

	mu    sync.Mutex
	queue []*order
	ended bool // nothing takes the queue's orders any more
}

// order is a command that waits for its turn. It has its file.
type order struct {
	*pending
	ctx  context.Context // of the one who waits for the answer
	text string
	f    *os.File
}

// Through makes a Conn of r, which it takes over also where it returns an error. All of Conn works
// through it as it does over a socket. r has no lock on the guest's configuration to give.
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
	cmd.ID = 0 // libvirt sets its own, and stumbles over another
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

// next takes the first order, or nil.
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

// fill gives QEMU the command, unless nobody waits for it any more, and delivers the answer.
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

// leave gives away what waits for its turn, all at once: whoever relays it may still do so when
// this side has gone. They come after the one whose answer is awaited, and the order among undo
// commands does not matter.
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

// duplicate makes a copy of f that the caller may outlive.
func duplicate(f *os.File) (dup *os.File, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); dupErr == nil {
			dup = os.NewFile(uintptr(n), f.Name())
		}
	})
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("%w: %w", errFile, err)
	}
	return dup, nil
}
