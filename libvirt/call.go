package libvirt

import (
	"context"
	"fmt"
	"os"
	"strings"

	"vmnet/internal/kernel/fdpass"
)

// procedure is a procedure of a libvirt program. go-libvirt knows its number and encoding too: the
// number that go-libvirt sends is compared with this one, and result checks each reply before
// go-libvirt decodes it.
type procedure struct {
	program uint32
	number  int32
	name    string         // without REMOTE_PROC_ or QEMU_PROC_
	result  func(*decoder) // reads what the procedure returns; nil if that is nothing
}

// Results of procedures.
var (
	aString    = func(d *decoder) { d.bytes() }
	aNumber    = func(d *decoder) { d.int32() }
	twoNumbers = func(d *decoder) { d.int32(); d.int32() }
	aDomain    = func(d *decoder) { d.domain() }
)

// call is a call that go-libvirt makes. It stays pending until the reply has arrived, even if no
// caller waits for it any longer. The socket's size bounds how many of those can exist.
type call struct {
	procedure
	text      []string      // all strings that it sends
	files     []*os.File    // that it sends; the caller closes them
	registers *registration // which the reply installs

	fds     descriptors   // copies of files, closed when they are sent
	written chan struct{} // closed when the call has been written, or cannot be

	// The following are guarded by Conn.mu until the call has returned.
	sent, replied, abandoned bool
	err                      error      // the error in the reply, if it is not a result
	received                 []*os.File // with the reply
}

// call makes a call that returns nothing. do calls go-libvirt, and text is every string that do
// sends.
func (c *Conn) call(ctx context.Context, p procedure, do func() error, text ...string) error {
	_, err := ask(ctx, c, &call{procedure: p, text: text}, func() (struct{}, error) {
		return struct{}{}, do()
	})
	return err
}

// ask makes a call through do, which calls go-libvirt. If libvirt refuses it, the error is an
// [*Error]. If ctx ends first, the error wraps its cause, and the daemon may or may not execute the
// call; the connection stays usable. If the connection ends, the error wraps that of [Conn.Err].
//
// do waits for the reply without a context. It runs in a separate goroutine, which outlives an
// ended ctx until the reply has arrived or the connection has ended.
func ask[T any](ctx context.Context, c *Conn, p *call, do func() (T, error)) (result T, err error) {
	if err := c.begin(ctx, p); err != nil {
		c.mu.Lock()
		c.unsent(p)
		c.mu.Unlock()
		return result, fmt.Errorf("%s: %w", p.name, err)
	}
	var value T
	returned := make(chan error, 1)
	go func() {
		defer c.work.Done()
		var err error
		value, err = do()
		c.yield(p)
		returned <- err
	}()
	select {
	case err = <-returned:
	case <-ctx.Done():
		if c.abandon(p) {
			err := context.Cause(ctx)
			return result, fmt.Errorf("%s: no reply yet, it may still be done: %w", p.name, err)
		}
		err = <-returned // the reply has arrived, which takes precedence
	}
	if err := c.outcome(p, err); err != nil {
		return result, err
	}
	return value, nil
}

// begin waits for the turn to send. After that the call is sent completely even if ctx ends, since
// half a packet would end the connection.
func (c *Conn) begin(ctx context.Context, p *call) (err error) {
	switch {
	case c.Err() != nil:
		return c.Err()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if err := p.validate(); err != nil {
		return err
	}
	p.written = make(chan struct{})
	if p.fds, err = duplicate(p.files); err != nil {
		return err
	}
	select {
	case c.turn <- struct{}{}:
		if err = c.start(p); err == nil {
			return nil
		}
		<-c.turn
	case <-c.done:
		err = c.Err()
	case <-ctx.Done():
		err = fmt.Errorf("not sent, libvirt does not read its socket: %w", context.Cause(ctx))
	}
	p.fds.close()
	return err
}

// validate refuses arguments that libvirt does not accept, and strings that C would truncate: a
// name that ends at a NUL may be another domain's.
func (p *call) validate() error {
	for _, s := range p.text {
		switch {
		case len(s) > maxString:
			return fmt.Errorf("string of %d bytes, libvirt accepts %d", len(s), maxString)
		case strings.IndexByte(s, 0) >= 0:
			return fmt.Errorf("string with a NUL byte: %.120q", s)
		}
	}
	if len(p.files) > maxFiles {
		return fmt.Errorf("%d files, libvirt accepts %d at a time", len(p.files), maxFiles)
	}
	return nil
}

// start makes p the next call that go-libvirt sends.
func (c *Conn) start(p *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.work.Add(1)
	c.sending = p
	if p.registers != nil {
		c.events.expected = true
	}
	return nil
}

// yield passes the turn to the next call, unless p has done so before.
func (c *Conn) yield(p *call) {
	c.mu.Lock()
	mine := c.sending == p
	if mine {
		c.sending = nil
		if !p.sent {
			c.unsent(p)
		}
	}
	c.mu.Unlock()
	if mine {
		p.fds.close()
		<-c.turn
	}
}

// unsent releases the resources of a call that libvirt will not answer. Conn.mu is held.
func (c *Conn) unsent(p *call) {
	if p.registers != nil {
		c.events.settle()
	}
}

// leave records p as sent, with the header that go-libvirt wrote.
func (c *Conn) leave(h header) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.sending
	switch {
	case c.err != nil:
		return nil, c.err
	case p == nil || h.program != p.program || h.procedure != p.number || h.kind != typeCall:
		return nil, fmt.Errorf("%w: go-libvirt sends %s", ErrProtocol, h)
	}
	p.sent = true
	c.pending[h.serial] = p
	return p, nil
}

// arrive handles a reply. It returns the payload that go-libvirt may decode: a result in the
// procedure's form, or nothing.
func (c *Conn) arrive(m message) (payload []byte, err error) {
	p := c.answered(m)
	if p == nil {
		fdpass.CloseAll(m.files)
		return nil, fmt.Errorf("%w: reply to no call of ours: %s", ErrProtocol, m.header)
	}
	// A daemon may answer a call before it has read it, and then stop reading. go-libvirt would
	// wait until the call is sent, while it holds a lock that all calls need.
	<-p.written
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		fdpass.CloseAll(m.files)
		return nil, c.err
	}
	delete(c.pending, m.serial)
	if p.registers != nil {
		c.install(p.registers, m)
	}
	p.replied, p.err = true, m.decode(p.name, p.result)
	if p.err != nil || p.abandoned {
		fdpass.CloseAll(m.files)
	} else {
		p.received = m.files
	}
	if p.err != nil {
		return nil, nil
	}
	return m.payload, nil
}

// answered returns the call that m answers, or nil.
func (c *Conn) answered(m message) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[m.serial]
	if p == nil || p.program != m.program || p.number != m.procedure || m.status > statusError {
		return nil
	}
	return p
}

// abandon reports whether the reply has not arrived yet. If so, no caller waits for it any longer.
func (c *Conn) abandon(p *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.abandoned = !p.replied
	return p.abandoned
}

// outcome returns a call's error. err is go-libvirt's, which has fewer details about refusals and
// ended connections.
func (c *Conn) outcome(p *call, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.err != nil:
		return p.err
	case p.replied && err == nil:
		return nil
	case p.replied:
		fdpass.CloseAll(p.received)
		return fmt.Errorf("%s: %w: reply: %w", p.name, ErrProtocol, err)
	case p.sent && c.err != nil:
		return fmt.Errorf("%s: no reply, so it may or may not have been done: %w", p.name, c.err)
	case c.err != nil:
		return fmt.Errorf("%s: %w", p.name, c.err)
	}
	return fmt.Errorf("%s: go-libvirt: %w", p.name, err)
}
