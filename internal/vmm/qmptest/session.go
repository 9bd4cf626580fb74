// Package qmptest is QEMU's side of its monitor for tests: sessions that a test scripts, and a
// process that answers like a QEMU without a machine in it and holds the files that it was given.
// It is for what needs no guest, and for faults that a real QEMU does not produce on demand.
package qmptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// Greeting is what QEMU 7.2 says to a client (QMP protocol specification, section "Server
// Greeting").
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// A Request is a command as the monitor received it.
type Request struct {
	Execute   string
	Arguments map[string]any
	ID        uint64
	Files     int // descriptors that came with it
}

// Returns is the reply of success with that JSON value.
func (r Request) Returns(value string) string {
	return fmt.Sprintf(`{"return": %s, "id": %d}`, value, r.ID)
}

// Refuses is the reply of failure (QapiErrorClass in qapi/error.json).
func (r Request) Refuses(class, desc string) string {
	return fmt.Sprintf(`{"id": %d, "error": {"class": %q, "desc": %q}}`, r.ID, class, desc)
}

// A Session is the monitor's side of one connection.
type Session struct {
	Conn *net.UnixConn

	buf []byte
	fds []int // of the last request
}

// Say sends lines. An error shows at the next request.
func (s *Session) Say(lines ...string) {
	_, _ = s.Conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
}

// Next receives one command, and closes the descriptors of the one before that nobody took. ok is
// false at the connection's end.
func (s *Session) Next() (r Request, ok bool) {
	closeAll(s.Take())
	for {
		if line, rest, found := bytes.Cut(s.buf, []byte{'\n'}); found {
			s.buf = bytes.Clone(rest)
			r.Files = len(s.fds)
			return r, json.Unmarshal(line, &r) == nil
		}
		// byte by byte like QEMU, so that an fd comes with its own command
		data, oob := make([]byte, 1), make([]byte, 128)
		n, oobn, _, _, err := s.Conn.ReadMsgUnix(data, oob)
		if err != nil || n == 0 {
			closeAll(s.Take())
			return r, false
		}
		s.buf = append(s.buf, data[:n]...)
		s.fds = append(s.fds, rights(oob[:oobn])...)
	}
}

// Take returns the descriptors that came with the last request. They are the caller's.
func (s *Session) Take() []int {
	fds := s.fds
	s.fds = nil
	return fds
}

func rights(oob []byte) (all []int) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		all = append(all, fds...)
	}
	return all
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Negotiate greets and accepts the capabilities. It reports whether the client has sent them.
func (s *Session) Negotiate() bool {
	s.Say(Greeting)
	r, ok := s.Next()
	if ok {
		s.Say(r.Returns("{}"))
	}
	return ok && r.Execute == "qmp_capabilities"
}

// AnswerAll returns an empty object to everything until the connection ends.
func (s *Session) AnswerAll() {
	for r, ok := s.Next(); ok; r, ok = s.Next() {
		s.Say(r.Returns("{}"))
	}
}

// Serve serves each client with serve, one after the other like QEMU, until the listener is closed.
func Serve(l *net.UnixListener, serve func(*Session)) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		s := &Session{Conn: conn}
		serve(s)
		closeAll(s.Take())
		_ = conn.Close()
	}
}
