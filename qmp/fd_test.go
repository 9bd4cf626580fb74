package qmp

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestExecuteFDGoesWithItsCommandOneAtATime(t *testing.T) {
	bothWays(t, executeFDGoesWithItsCommandOneAtATime)
}

func executeFDGoesWithItsCommandOneAtATime(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	var unanswered, overlaps atomic.Int32
	counts := make(chan request, 100)
	c := fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			counts <- r
			if r.Execute != "getfd" {
				s.Say(r.Returns("{}"))
				continue
			}
			if unanswered.Add(1) > 1 {
				overlaps.Add(1)
			}
			// not a wait: what else is sent while it is unanswered must carry no descriptor
			time.Sleep(5 * time.Millisecond)
			unanswered.Add(-1)
			s.Say(r.Returns("{}"))
		}
	})
	f := nullFile(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := c.GetFD(within(t, 10*time.Second), "q0", f); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := c.Execute(within(t, 10*time.Second), "stop", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if overlaps.Load() > 0 {
		t.Error("two commands with a descriptor were in flight")
	}
	for range 20 {
		r := <-counts
		if want := map[string]int{"getfd": 1, "stop": 0}[r.Execute]; r.Files != want {
			t.Errorf("%s came with %d descriptors, want %d", r.Execute, r.Files, want)
		}
	}
}

func TestExecuteFDWaitsForAnAbandonedOne(t *testing.T) { bothWays(t, executeFDWaitsForAnAbandonedOne) }

func executeFDWaitsForAnAbandonedOne(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	first, release := make(chan request, 1), make(chan struct{})
	seen := make(chan request, 1)
	c := fakeConn(t, func(s *session) {
		r, _ := s.Next()
		first <- r
		<-release
		s.Say(r.Returns("{}"))
		r, _ = s.Next()
		seen <- r
		s.Say(r.Returns("{}"))
		answer(s)
	})
	f := nullFile(t)
	if err := c.GetFD(within(t, 50*time.Millisecond), "a", f); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	<-first
	if err := c.GetFD(within(t, 50*time.Millisecond), "b", f); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second while the first is unanswered: %v", err)
	}
	close(release)
	if err := c.GetFD(within(t, 20*time.Second), "c", f); err != nil {
		t.Error(err)
	}
	if r := <-seen; r.Arguments["fdname"] != "c" {
		t.Errorf("the second getfd to arrive was for %v, want c", r.Arguments["fdname"])
	}
}

func TestExecuteFDOfNoFile(t *testing.T) { bothWays(t, executeFDOfNoFile) }

func executeFDOfNoFile(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	c := fakeConn(t, answer)
	f := nullFile(t)
	_ = f.Close()
	for range 2 { // the turn to pass is given back
		if err := c.GetFD(within(t, 20*time.Second), "a", f); err == nil {
			t.Error("a closed file was passed")
		}
	}
	if err := c.GetFD(t.Context(), "a", nil); err == nil {
		t.Error("nil was passed")
	}
	if err := c.GetFD(within(t, 20*time.Second), "a", nullFile(t)); err != nil {
		t.Error(err)
	}
}
