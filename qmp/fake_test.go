package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const greetingLine = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// request is a command as the fake monitor received it.
type request struct {
	Execute   string
	Arguments map[string]any
	ID        uint64
	files     int // descriptors that came with it
}

func (r request) returns(value string) string {
	return fmt.Sprintf(`{"return": %s, "id": %d}`, value, r.ID)
}

func (r request) refuses(class, desc string) string {
	return fmt.Sprintf(`{"id": %d, "error": {"class": %q, "desc": %q}}`, r.ID, class, desc)
}

// session is the fake's side of one connection.
type session struct {
	uc  *net.UnixConn
	buf []byte
}

func (s *session) say(lines ...string) {
	_, _ = s.uc.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
}

// next receives one command, and closes what descriptors come with it.
func (s *session) next() (r request, ok bool) {
	for {
		if line, rest, found := bytes.Cut(s.buf, []byte{'\n'}); found {
			s.buf = bytes.Clone(rest)
			return r, json.Unmarshal(line, &r) == nil
		}
		data, oob := make([]byte, 1), make([]byte, 128) // byte by byte like QEMU, so that an fd comes with its own command
		n, oobn, _, _, err := s.uc.ReadMsgUnix(data, oob)
		if err != nil || n == 0 {
			return r, false
		}
		s.buf = append(s.buf, data[:n]...)
		r.files += closeRights(oob[:oobn])
	}
}

func closeRights(oob []byte) (count int) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			_ = unix.Close(fd)
			count++
		}
	}
	return count
}

// negotiate greets, and accepts the capabilities.
func (s *session) negotiate() bool {
	s.say(greetingLine)
	r, ok := s.next()
	if ok {
		s.say(r.returns("{}"))
	}
	return ok && r.Execute == "qmp_capabilities"
}

// fake serves each connection with serve, one after the other like QEMU, until the test ends.
func fake(t *testing.T, serve func(*session)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "qmp.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []*net.UnixConn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			uc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, uc)
			mu.Unlock()
			serve(&session{uc: uc})
			_ = uc.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, uc := range open {
			_ = uc.Close()
		}
		mu.Unlock()
		<-ended
	})
	return path
}

// fakeConn dials a fake that negotiates and then runs serve.
func fakeConn(t *testing.T, serve func(*session)) *Conn {
	t.Helper()
	path := fake(t, func(s *session) {
		if s.negotiate() {
			serve(s)
		}
	})
	return dialT(t, path)
}

func dialT(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Dial(within(t, 10*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// answer returns an empty object to everything until the connection ends.
func answer(s *session) {
	for r, ok := s.next(); ok; r, ok = s.next() {
		s.say(r.returns("{}"))
	}
}

// swallow receives and never answers.
func swallow(s *session) {
	for _, ok := s.next(); ok; _, ok = s.next() {
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// nullFile is something to pass.
func nullFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
