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
	// undoReplySilent is how long the next ones do once one has waited in vain.
	undoReplySilent = 20 * time.Millisecond
	// holdName is the getfd name under which leave's socket passes through QEMU.
	holdName = "vmnet-hold"
)

// undo executes a command that takes something back. It is sent even if ctx has
// ended, and its reply is awaited only for a while: a QEMU that is stopped must
// not keep the rest of an undo list from being sent. Its error then Is
// [ErrUnanswered].
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

// owes tells whether an undo command is still unanswered.
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

// leave makes QEMU run what it was sent even though this side closes its socket.
//
// QEMU forgets unread commands when the peer hangs up, and a name given by getfd
// would hold its tap for as long as QEMU lives. So the socket is sent through itself:
// the copy that waits in QEMU's own queue keeps it from hanging up, until QEMU has run
// all that came before, takes the copy as a getfd name, and closes that by the
// last command. Where QEMU dies first, the queue and the copy die with it.
func (s *socket) leave(c *Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), undoSend)
	defer cancel()
	self, err := s.uc.File()
	if err != nil {
		return
	}
	defer func() { _ = self.Close() }()
	// Not by ExecuteFD, which awaits the reply to an earlier fd. If that one is
	// lost by this, then so is a tap that was to be given back anyway.
	name := map[string]any{"fdname": holdName}
	if _, err := c.send(ctx, &pending{command: "getfd"}, name, self); err != nil {
		return
	}
	_, _ = c.send(ctx, &pending{command: "closefd"}, name, nil)
}
