package qmp

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vmnet/internal/vmm/qmptest"
)

// The fake's side of a connection, and a command as it received it.
type (
	session = qmptest.Session
	request = qmptest.Request
)

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
		qmptest.Serve(l, func(s *session) {
			mu.Lock()
			open = append(open, s.Conn)
			mu.Unlock()
			serve(s)
		})
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
		if s.Negotiate() {
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

func answer(s *session) { s.AnswerAll() }

// swallow receives and never answers.
func swallow(s *session) {
	for _, ok := s.Next(); ok; _, ok = s.Next() {
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
