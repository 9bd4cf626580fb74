package qmp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// undoSend bounds the sending of an undo command, whatever is left of its context.
	undoSend = 100 * time.Millisecond
	// undoReply is how long the first undo command awaits its reply.
	undoReply = 3 * time.Second
	// undoReplySilent is how long the next ones do after a first one was not answered.
	undoReplySilent = 20 * time.Millisecond
	// holdName is the getfd name under which leave's socket passes through QEMU.
	holdName = "vmnet-hold"
)

// undo executes a command that reverses another one. It sends the command even if ctx has ended,
// and waits for the reply only for a while: a stopped QEMU must not keep the rest of an undo list
// from being sent. The error then matches [ErrUnanswered].
func (c *Conn) undo(ctx context.Context, command string, args any) error {
	c.mu.Lock()
	patience := undoReply
	if c.silent {
		patience = undoReplySilent
	}
	c.mu.Unlock()

	sendCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoSend)
	defer cancel()
	p, err := c.send(sendCtx, &pending{command: command, undoes: true}, args, nil)
	if err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	err = c.await(ctx, p, nil)
	if errors.Is(err, errNoReply) {
		c.mu.Lock()
		c.silent = true
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return err
}

// owes reports whether an undo command is still unanswered.
func (c *Conn) owes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pending {
		if p.undoes {
			return c.err == nil
		}
	}
	return false
}

// leave makes QEMU run what was sent even though this process closes its socket.
//
// QEMU drops unread commands when its peer hangs up, and a getfd name would hold its tap for as
// long as QEMU lives. So the socket is sent through itself: the copy that waits in QEMU's queue
// keeps the connection open, until QEMU has run all earlier commands, takes the copy as a getfd
// name, and closes it by the last command. If QEMU dies first, the queue and the copy end with it.
func (s *socket) leave(c *Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), undoSend)
	defer cancel()
	self, err := s.uc.File()
	if err != nil {
		return
	}
	defer func() { _ = self.Close() }()
	// Not by ExecuteFD, which waits for the reply to an earlier fd. If this displaces that fd, then
	// only a tap is lost that was to be removed anyway.
	name := map[string]any{"fdname": holdName}
	if _, err := c.send(ctx, &pending{command: "getfd"}, name, self); err != nil {
		return
	}
	_, _ = c.send(ctx, &pending{command: "closefd"}, name, nil)
}
