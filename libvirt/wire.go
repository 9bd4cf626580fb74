package libvirt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// lastWords bounds the reading of what a daemon said before it hung up.
const lastWords = time.Second

const (
	keepalivePing = 1
	keepalivePong = 2
)

// read is the connection's one reader; it ends when the connection does.
func (c *Conn) read() {
	for {
		m, err := readMessage(socket{c.uc})
		if err == nil {
			err = c.dispatch(m)
		} else if !errors.Is(err, ErrProtocol) {
			err = errEnded(err)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// dispatch gives a message to whom it is for. The daemon makes no calls, and we open no streams.
func (c *Conn) dispatch(m message) error {
	known := m.program == remoteProgram || m.program == qemuProgram || m.program == keepaliveProgram
	switch {
	case !known || m.version != programVersion:
	case m.kind == typeReply || m.kind == typeReplyWithFiles:
		return c.deliver(m)
	case m.kind == typeMessage && m.program == keepaliveProgram:
		if m.procedure == keepalivePing {
			select {
			case c.pongs <- struct{}{}:
			default:
			}
		}
		return nil
	case m.kind == typeMessage:
		return c.event(m)
	}
	fdpass.CloseAll(m.files)
	return fmt.Errorf("%w: unexpected: %s", ErrProtocol, m.header)
}

// deliver hands a reply to its caller, or drops it where nobody waits any more.
func (c *Conn) deliver(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[m.serial]
	if p == nil || p.program != m.program || p.number != m.procedure || m.status > statusError {
		fdpass.CloseAll(m.files)
		return fmt.Errorf("%w: reply to no call of ours: %s", ErrProtocol, m.header)
	}
	delete(c.pending, m.serial)
	if p.registers != nil {
		c.install(p.registers, m)
	}
	if p.abandoned {
		fdpass.CloseAll(m.files)
		return nil
	}
	p.reply <- m // has room, and comes once
	return nil
}

// write is the connection's one writer, so that packets are never mixed or cut.
func (c *Conn) write() {
	for {
		var err error
		select {
		case p := <-c.out:
			err = send(c.uc, p.packet, p.fds)
			p.fds.close()
		case <-c.pongs:
			var pong []byte
			pong, err = encode(header{keepaliveProgram, programVersion, keepalivePong, typeMessage, 0, statusOK}, 0, nil)
			if err == nil {
				err = send(c.uc, pong, nil)
			}
		case <-c.done:
			return
		}
		if err != nil {
			select { // what the daemon said before it hung up tells more
			case <-c.done:
			case <-time.After(lastWords):
			}
			c.fail(errEnded(err))
			return
		}
	}
}

// send writes a packet and then each file with one byte, as libvirt expects
// it (virNetClientIOWriteMessage in src/rpc/virnetclient.c).
func send(uc *net.UnixConn, packet []byte, fds descriptors) error {
	if _, err := uc.Write(packet); err != nil {
		return err
	}
	for _, fd := range fds {
		if _, _, err := uc.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
			return err
		}
	}
	return nil
}

// descriptors are plain numbers because an [os.File] would touch what the files share: O_NONBLOCK.
type descriptors []int

// duplicate makes copies that outlive whatever the caller does to its files.
func duplicate(files []*os.File) (fds descriptors, err error) {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			var dupErr error
			err = raw.Control(func(of uintptr) {
				var fd int
				if fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 3); dupErr == nil {
					fds = append(fds, fd)
				}
			})
			err = errors.Join(err, dupErr)
		}
		if err != nil {
			fds.close()
			return nil, fmt.Errorf("copy the file to pass: %w", err)
		}
	}
	return fds, nil
}

func (fds descriptors) close() {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// socket is a source. Files that come with other bytes than their own are never
// taken in: read(2) has no room for them.
type socket struct{ *net.UnixConn }

func (s socket) readFile() (*os.File, error) {
	var dummy [1]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := s.ReadMsgUnix(dummy[:], oob) // with MSG_CMSG_CLOEXEC
	if err != nil {
		return nil, err
	}
	files, err := filesIn(oob[:oobn])
	switch {
	case err == nil && len(files) == 1 && n == 1:
		return files[0], nil
	case err == nil && len(files) == 0 && n == 0:
		return nil, io.ErrUnexpectedEOF
	}
	fdpass.CloseAll(files)
	return nil, errors.Join(fmt.Errorf("%w: %d files with %d bytes where one of each is due", ErrProtocol, len(files), n), err)
}

// filesIn takes files out of control messages; it returns those it has found also with an error.
func filesIn(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from libvirt"))
		}
	}
	return files, nil
}
