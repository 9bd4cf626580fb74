package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestExecuteDecodesRepliesAndErrors(t *testing.T) { bothWays(t, executeDecodesRepliesAndErrors) }

func executeDecodesRepliesAndErrors(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	c := fakeConn(t, func(s *session) {
		r, _ := s.Next()
		s.Say(r.Returns(`{"name": "P2"}`))
		r, _ = s.Next()
		s.Say(r.Refuses("DeviceNotFound", "Device 'x' not found"))
		r, _ = s.Next()
		s.Say(r.Returns(`{"name": 7}`))
		answer(s)
	})
	ctx := within(t, 20*time.Second)
	if name, err := c.Name(ctx); name != "P2" || err != nil {
		t.Errorf("Name: %q, %v", name, err)
	}
	err := c.Execute(ctx, "device_del", idArg("x"), nil)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrDeviceNotFound) || err.Error() != "device_del: Device 'x' not found" {
		t.Errorf("got %#v", err)
	}
	if _, err := c.Name(ctx); !errors.Is(err, ErrProtocol) {
		t.Errorf("reply of another shape: %v", err)
	}
	if err := c.Execute(ctx, "x", make(chan int), nil); err == nil {
		t.Error("arguments that do not marshal were sent")
	}
	if err := c.Execute(ctx, "y", nil, nil); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
}

func TestRepliesOutOfOrder(t *testing.T) {
	const n = 20
	c := fakeConn(t, func(s *session) {
		var rs []request
		for range n {
			r, _ := s.Next()
			rs = append(rs, r)
		}
		s.Say(`{"return": {}, "id": 4711}`) // of nobody
		for i := n - 1; i >= 0; i-- {
			s.Say(rs[i].Returns(fmt.Sprint(rs[i].Arguments["n"])))
		}
		answer(s)
	})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got int
			err := c.Execute(within(t, 20*time.Second), "echo", map[string]any{"n": i}, &got)
			if err != nil || got != i {
				t.Errorf("echo %d: %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

func TestHugeReply(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 15<<12) // 960 KiB
	c := fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			s.Say(r.Returns(`"` + text + `"`))
		}
	})
	var first json.RawMessage
	if err := c.Execute(within(t, 10*time.Second), "a", nil, &first); err != nil {
		t.Fatal(err)
	}
	var second string
	if err := c.Execute(within(t, 10*time.Second), "b", nil, &second); err != nil || second != text {
		t.Errorf("second: %d bytes, %v", len(second), err)
	}
	if string(first) != `"`+text+`"` {
		t.Error("the first reply was overwritten")
	}
}

func TestSilence(t *testing.T) {
	received := make(chan request, 10)
	c := fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			received <- r
			if r.Execute == "late" {
				first := <-received
				s.Say(first.Returns(`"abandoned"`), r.Returns(`"mine"`))
			}
		}
	})
	err := c.Execute(within(t, 50*time.Millisecond), "stop", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	// The reply that comes too late is not taken for another command's.
	var got string
	if err := c.Execute(within(t, 20*time.Second), "late", nil, &got); err != nil || got != "mine" {
		t.Errorf("late: %q, %v", got, err)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

func TestConnectionFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault string
		want  error
		text  string
	}{
		"garbage":     {"\x00\xff{{\n", ErrProtocol, ""},
		"half a line": {`{"return": {}, "id": 2`, ErrClosed, "within a message"},
		"hang-up":     {"", ErrClosed, "hung up"},
		"error without id": {
			`{"error": {"class": "GenericError", "desc": "JSON parse error, stray"}}` + "\n",
			ErrProtocol, "JSON parse error, stray",
		},
		"reply without id": {`{"return": {}}` + "\n", ErrProtocol, "without an id"},
		"id of no number":  {`{"return": {}, "id": "x"}` + "\n", ErrProtocol, ""},
		"neither":          {`{"id": 2}` + "\n", ErrProtocol, "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeConn(t, func(s *session) {
				s.Next()
				s.Next()
				_, _ = s.Conn.Write([]byte(tc.fault))
			})
			sub := c.Subscribe(1)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					err := c.Execute(within(t, 20*time.Second), "stop", nil, nil)
					if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
						t.Errorf("got %v, want %v with %q", err, tc.want, tc.text)
					}
				})
			}
			wg.Wait()
			<-c.Done()
			if !errors.Is(c.Err(), tc.want) {
				t.Errorf("Err: %v", c.Err())
			}
			if _, open := <-sub.C; open {
				t.Error("the subscription is still open")
			}
			if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, tc.want) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestReplyBeforeDeathCounts(t *testing.T) { bothWays(t, replyBeforeDeathCounts) }

func replyBeforeDeathCounts(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	for range 50 {
		c := fakeConn(t, func(s *session) {
			r, _ := s.Next()
			s.Say(r.Returns("{}"))
		})
		if err := c.Execute(within(t, 20*time.Second), "quit", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) { bothWays(t, closeEndsEverything) }

func closeEndsEverything(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	received := make(chan struct{})
	c := fakeConn(t, func(s *session) {
		s.Next()
		close(received)
		swallow(s)
	})
	got := make(chan error, 1)
	go func() { got <- c.Execute(t.Context(), "stop", nil, nil) }()
	<-received
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, open := <-c.Subscribe(1).C; open {
		t.Error("a subscription to a closed connection is open")
	}
}

func TestPartialWriteEndsTheConnection(t *testing.T) {
	stall := make(chan struct{})
	c := fakeConn(t, func(*session) { <-stall })
	defer close(stall)
	err := c.Execute(within(t, 20*time.Second), "big", map[string]any{"x": strings.Repeat("x", 8<<20)}, nil)
	if !errors.Is(err, ErrClosed) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := c.Execute(within(t, 20*time.Second), "next", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after half a command: %v", err)
	}
}

func TestUnsentCommandLeavesTheConnectionWhole(t *testing.T) {
	for range 20 {
		if leavesUnsent(t) {
			return
		}
	}
	t.Fatal("the kernel took half a command each time")
}

// leavesUnsent fills the socket with whole commands until none fits, and wants the connection to
// work afterwards. It returns false if the kernel took half of the last command, which ends the
// connection.
func leavesUnsent(t *testing.T) bool {
	t.Helper()
	stall := make(chan struct{})
	c := fakeConn(t, func(s *session) { <-stall; answer(s) })
	var err error
	for i := 0; err == nil; i++ {
		if i > 1_000_000 {
			t.Fatal("the socket never fills")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err = c.send(ctx, &pending{command: "x"}, nil, nil)
		cancel()
	}
	close(stall)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if errors.Is(err, ErrClosed) {
		return false
	}
	if err := c.Execute(within(t, 10*time.Second), "y", nil, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	return true
}
