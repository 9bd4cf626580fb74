package control

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience limits the wait for things that take no time on an idle machine.
const patience = 20 * time.Second

func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func client(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Dial(soon(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func openFiles(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// pretend listens, and calls do with each connection.
func pretend(t *testing.T, do func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sw")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			serving.Go(func() {
				do(conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return path
}

func TestClientOfAnInvalidServer(t *testing.T) {
	say := func(messages ...string) func(*net.UnixConn) {
		return func(conn *net.UnixConn) {
			_, _ = conn.Read(make([]byte, MaxMessage))
			for _, m := range messages {
				if _, err := conn.Write([]byte(m)); err != nil {
					return
				}
			}
		}
	}
	for _, test := range []struct {
		what string
		do   func(*net.UnixConn)
		want string
	}{
		{"nonsense", say("nonsense"), "reply of the switch"},
		{"nothing", say(), "has closed the connection"},
		{"no info", say("{}"), "reply of the switch is empty"},
		{"cut off", say(`{"more":true}`), "has closed the connection"},
		{"a null", say("null"), "reply of the switch is empty"},
		{"too long", say(strings.Repeat(" ", MaxMessage+1)), "a message of more than"},
		{"an error", say(`{"error":{"text":"as told","kind":"nonsense"}}`), "as told"},
		{"files", func(conn *net.UnixConn) {
			_, _ = conn.Read(make([]byte, MaxMessage))
			_ = fdpass.SendOver(conn, []byte("{}"), os.Stderr, os.Stderr)
		}, "a message of more than"},
	} {
		path := pretend(t, test.do)
		before := openFiles(t)
		c := client(t, path)
		if _, err := c.Info(soon(t)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.what, err)
		}
		_ = c.Close()
		nstest.Eventually(t, patience, "no file stays open after "+test.what, func() bool {
			return openFiles(t) <= before
		})
	}
}

func TestClientsContext(t *testing.T) {
	endless := pretend(t, func(conn *net.UnixConn) {
		_, _ = conn.Read(make([]byte, MaxMessage))
		for {
			if _, err := conn.Write([]byte(`{"more":true}`)); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // not a wait: the pace of the messages
		}
	})
	silent := pretend(t, func(conn *net.UnixConn) { _, _ = io.Copy(io.Discard, conn) })
	for _, path := range []string{endless, silent} {
		c := client(t, path)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if _, err := c.Ports(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		cancel()
		if err := c.Flush(soon(t), ""); err == nil || !strings.Contains(err.Error(), "broke earlier") {
			t.Errorf("afterwards: %v", err)
		}
		why := errors.New("as told")
		ctx, cancelCause := context.WithCancelCause(context.Background())
		cancelCause(why)
		if _, err := client(t, path).Ports(ctx); !errors.Is(err, why) {
			t.Errorf("ended before: %v", err)
		}
	}
	if _, err := Dial(soon(t), filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
}
