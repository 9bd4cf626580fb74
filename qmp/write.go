package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lastWords bounds the reading of what a peer has sent before it hung up.
const lastWords = time.Second

// socket is a connection to QEMU's own socket.
type socket struct {
	uc      *net.UnixConn
	writing chan struct{} // holds a token during a write
}

func (s *socket) close() { _ = s.uc.Close() }

// send writes one whole command. If ctx ends with the command half written the connection is lost:
// QEMU would take what follows for the other half.
func (s *socket) send(ctx context.Context, c *Conn, _ *pending, cmd command, f *os.File) error {
	text, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	return s.write(ctx, c, append(text, '\n'), f)
}

func (s *socket) write(ctx context.Context, c *Conn, text []byte, f *os.File) error {
	if err := c.acquire(ctx, s.writing); err != nil {
		return err
	}
	defer func() { <-s.writing }()
	unbound := bindDeadline(ctx, s.uc)
	var n int
	var err error
	if f == nil {
		n, err = s.uc.Write(text)
	} else {
		n, err = writeFD(s.uc, text, f)
	}
	unbound()
	switch {
	case err == nil:
		return nil
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("not sent, QEMU does not read its monitor: %w", ended(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: command cut off after %d bytes, QEMU does not read its monitor: %w",
			ErrClosed, n, ended(ctx))
	case errors.Is(err, errFile):
		return err
	case errors.Is(err, net.ErrClosed):
		return c.Err()
	default: // the peer has hung up; what it sent before is still to be read, and says why
		select {
		case <-c.idle:
		case <-time.After(lastWords):
		}
		err = fmt.Errorf("%w: %w", ErrClosed, err)
		if c.Err() != nil {
			return c.Err()
		}
	}
	c.fail(err)
	return err
}

// errFile is the error of a file to pass that is closed already.
var errFile = errors.New("pass the file")

// writeFD sends the descriptor with the first bytes. sendmsg(2) may take only some of them; the
// rest goes without the descriptor.
func writeFD(uc *net.UnixConn, text []byte, f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errFile, err)
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) { n, _, sendErr = uc.WriteMsgUnix(text, unix.UnixRights(int(fd)), nil) })
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errFile, err)
	}
	if sendErr != nil || n == len(text) {
		return n, sendErr
	}
	rest, err := uc.Write(text[n:])
	return n + rest, err
}

// bindDeadline makes writes end with ctx, until the returned function is called.
func bindDeadline(ctx context.Context, uc *net.UnixConn) (unbound func()) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = uc.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired // else it could hit the next writer
			_ = uc.SetWriteDeadline(time.Time{})
		}
	}
}
