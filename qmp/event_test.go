package qmp

import (
	"fmt"
	"testing"
	"time"
)

func TestEventsAreFilteredAndInOrder(t *testing.T) {
	c := fakeConn(t, func(s *session) {
		r, _ := s.Next()
		for i := range 3 {
			s.Say(`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`,
				fmt.Sprintf(
					`{"event": "DEVICE_DELETED", "data": {"device": "d%d"}, "timestamp": {"seconds": 5, "microseconds": 7}}`,
					i))
		}
		s.Say(r.Returns("{}"))
		answer(s)
	})
	deleted, all := c.Subscribe(10, "DEVICE_DELETED"), c.Subscribe(10)
	defer deleted.Close()
	defer all.Close()
	if err := c.Execute(within(t, 20*time.Second), "go", nil, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		e := <-deleted.C
		if want := fmt.Sprintf(`{"device": "d%d"}`, i); string(e.Data) != want || !e.Time.Equal(time.Unix(5, 7000)) {
			t.Errorf("event %d: %s %s at %v", i, e.Name, e.Data, e.Time)
		}
	}
	if len(deleted.C) != 0 || len(all.C) != 6 {
		t.Errorf("%d and %d events are left, want 0 and 6", len(deleted.C), len(all.C))
	}
	if e := <-all.C; e.Name != "STOP" || !e.Time.IsZero() || e.Data != nil {
		t.Errorf("got %+v", e)
	}
}

func TestSlowSubscriberLosesEventsAndStopsNothing(t *testing.T) {
	const flood = 5000
	c := fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			for range flood {
				s.Say(`{"event": "BALLOON_CHANGE", "data": {"actual": 1}}`)
			}
			s.Say(r.Returns("{}"))
		}
	})
	slow := c.Subscribe(0)
	if err := c.Execute(within(t, 20*time.Second), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if slow.Lost() != flood-1 || len(slow.C) != 1 {
		t.Errorf("lost %d, %d wait; want %d and 1", slow.Lost(), len(slow.C), flood-1)
	}
	slow.Close()
	slow.Close()
	<-slow.C
	if _, open := <-slow.C; open {
		t.Error("C is open after Close")
	}
	if err := c.Execute(within(t, 20*time.Second), "y", nil, nil); err != nil {
		t.Fatal(err)
	}
	if slow.Lost() != flood-1 {
		t.Error("a closed subscription counts")
	}
}
