package rtnl

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// eventsIn subscribes in a new netns, and opens a socket there.
func eventsIn(t *testing.T) (*Events, *Conn) {
	t.Helper()
	ns := nstest.New(t)
	c, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	e, err := OpenEvents(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e, c
}

// next waits for a wanted event. The kernel sends events before it answers the request that causes
// them, so the wait is short. Otherwise the time limit of the test ends it.
func next(t *testing.T, e *Events, wanted func(Event) bool) Event {
	t.Helper()
	stuck := time.AfterFunc(20*time.Second, func() { _ = e.Close() })
	defer stuck.Stop()
	for {
		event, err := e.Next()
		if err != nil {
			t.Fatal(err)
		}
		if wanted(event) {
			return event
		}
	}
}

func TestLiveEvents(t *testing.T) {
	e, c := eventsIn(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Create("bridge", Name("br0")))
	br := next(t, e, func(e Event) bool { return e.Name == "br0" })
	if br.Gone || br.Bridge == nil || br.Index == 0 {
		t.Errorf("a new bridge: %+v", br)
	}
	must(c.Create("veth", Name("a")))
	a := next(t, e, func(e Event) bool { return e.Name == "a" })
	must(c.Set(a.Index, Up(true)))
	must(c.Set(a.Index, Alias("somebody's"))) // a link that is down sends no event of it (netdev_state_change)
	next(t, e, func(e Event) bool { return e.Index == a.Index && e.Alias == "somebody's" })
	must(c.Set(a.Index, Master(br.Index)))
	port := next(t, e, func(e Event) bool { return e.Index == a.Index && e.Master != 0 })
	if port.Master != br.Index || port.Port == nil || port.Kind != "veth" || port.Gone {
		t.Errorf("a new port: %+v", port)
	}
	must(c.Set(a.Index, Master(0)))
	off := next(t, e, func(e Event) bool { return e.Index == a.Index && e.Master == 0 })
	if off.Gone {
		t.Error("that it is no longer a port is reported as its removal")
	}
	must(c.Delete(a.Index))
	next(t, e, func(e Event) bool { return e.Index == a.Index && e.Gone })
}

func TestLiveEventsAreLostAndDrained(t *testing.T) {
	e, c := eventsIn(t)
	var err error
	if e.conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	}) != nil || err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := c.Create("bridge", Name(fmt.Sprintf("br%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	lost := 0
	for err == nil {
		if _, err = e.Next(); errors.Is(err, ErrLost) {
			lost++
		}
	}
	if lost != 1 || !errors.Is(err, ErrLost) {
		t.Fatalf("lost %d times: %v", lost, err)
	}
	if err := e.Drain(); err != nil {
		t.Fatal(err)
	}
	if err := c.Create("bridge", Name("last")); err != nil {
		t.Fatal(err)
	}
	if event := next(t, e, func(Event) bool { return true }); event.Name != "last" {
		t.Errorf("after Drain, there is an event of %s", event.Name)
	}
}

func TestLiveEventsEndByClose(t *testing.T) {
	e, _ := eventsIn(t)
	done := make(chan error)
	go func() {
		for {
			if _, err := e.Next(); err != nil {
				done <- err
				return
			}
		}
	}()
	nstest.Eventually(t, 20*time.Second, "Next waits", func() bool {
		return nstest.Waiting("internal/kernel/rtnl.(*Events).receive") == 1
	})
	_ = e.Close()
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if err := e.Drain(); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), make([]byte, 40))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		e, ok := parseEvent(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data})
		if ok != (e.Link != nil) {
			t.Error("an event without a link")
		}
	})
}
