package vhostuser

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// logged returns a log that the device knows, and that is empty.
func (b *bench) logged(f *frontend.Frontend) *frontend.Log {
	b.t.Helper()
	l := b.newLog(f)
	if err := l.Start(); err != nil {
		b.t.Fatal(err)
	}
	return l
}

func (b *bench) newLog(f *frontend.Frontend) *frontend.Log {
	b.t.Helper()
	l, err := f.NewLog()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = l.Close() })
	return l
}

// changedPages returns the pages from start to end that differ.
func changedPages(was, is []byte, start, end int) (pages []int) {
	for at := start; at < end; at += 4096 {
		to := min(at+4096, end)
		if !bytes.Equal(was[at-start:to-start], is[at:to]) {
			pages = append(pages, at/4096)
		}
	}
	return pages
}

// TestLogHasWhatIsWritten compares the log with the pages that have changed, for each frame to the
// guest: in one buffer and in many, in a ring that wraps and whose used entries cross pages.
func TestLogHasWhatIsWritten(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  frontend.Config
	}{
		{"event index", frontend.Config{Ring: 512}},
		{"flags", frontend.Config{Ring: 512, Without: frontend.EventIndex}},
		{"one buffer", frontend.Config{Ring: 64, Buffer: 66 << 10, Without: frontend.Mergeable}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			f := b.guest(tt.cfg)
			l := b.logged(f)
			p, memory, s := f.Pair[0], first(f.Memory()), new(Sender)
			start, end := p.Room(false)
			l.Take()
			for i := range 400 {
				was := slices.Clone(memory[start:end])
				n := sizes[i%len(sizes)]
				if i%20 != 0 {
					n = min(n, 3000+i) // two buffers, of another length at each lap
				}
				if r := b.send(s, 0, []byte{0}, ether(n, i)); r != Sent {
					t.Fatalf("frame %d: %d", i, r)
				}
				if got, want := l.Take(), changedPages(was, memory, start, end); !slices.Equal(got, want) {
					t.Fatalf("frame %d of %d bytes: pages %d are logged, and %d have changed", i, n, got, want)
				}
				if _, ok := p.Receive(); !ok {
					t.Fatal("the guest has no frame")
				}
			}
			if err := b.hangup(f); err != nil {
				t.Error(err)
			}
		})
	}
}

func first[T, U any](v T, _ U) T { return v }

// TestLogHasUsedRings: of frames from the guest, only the used ring is written. A log that was
// ended, or a ring that is not logged, gets no bits.
func TestLogHasUsedRings(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{Ring: 512})
	l := b.logged(f)
	p := f.Pair[0]
	seen := map[int]bool{}
	passes := func(count int) {
		t.Helper()
		for i := range count {
			nstest.Eventually(t, within, "the ring has room", func() bool {
				return p.Send(append(make([]byte, frontend.Header), ether(60, i)...)) == 1
			})
			b.receive()
		}
		nstest.Eventually(t, within, "the frames are used", func() bool { return p.InFlight() == 0 })
		for _, n := range l.Take() {
			seen[n] = true
		}
	}
	passes(600)
	for _, n := range p.UsedRing() {
		if !seen[n] {
			t.Errorf("page %d of the used ring is not logged", n)
		}
		delete(seen, n)
	}
	if len(seen) > 0 {
		t.Errorf("pages %v were not written", seen)
	}
	if err := l.Ask(false); err != nil {
		t.Fatal(err)
	}
	l.Take()
	passes(10)
	if r := b.send(new(Sender), 0, []byte{0}, ether(60, 0)); r != Sent {
		t.Error(r)
	}
	if got := l.Take(); len(got) > 0 || len(seen) > 0 {
		t.Errorf("after the log was ended, pages %d %v are logged", got, seen)
	}
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
}

// TestNothingIsUnlogged: once a log is asked for, no frame passes without it, and none is lost.
func TestNothingIsUnlogged(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	l := b.newLog(f)
	if err := l.Ask(true); err != nil {
		t.Fatal(err)
	}
	frame, s := ether(60, 1), new(Sender)
	f.Pair[0].Send(append(make([]byte, frontend.Header), frame...))
	if r := b.send(s, 0, []byte{0}, frame); r != Down {
		t.Errorf("without a log: %d", r)
	}
	if n := f.Pair[0].InFlight(); n != 1 || len(b.got) > 0 {
		t.Errorf("without a log, the guest's frame was taken: %d in flight", n)
	}
	if err := l.Give(); err != nil {
		t.Fatal(err)
	}
	if got := b.receive(); !bytes.Equal(got[10:], frame) {
		t.Error("another frame")
	}
	second := b.newLog(f) // a larger one replaces it
	if err := second.Give(); err != nil {
		t.Fatal(err)
	}
	l.Take()
	if r := b.send(s, 0, []byte{0}, frame); r != Sent {
		t.Errorf("with a log: %d", r)
	}
	if was, is := l.Take(), second.Take(); len(was) > 0 || len(is) == 0 {
		t.Errorf("the former log has pages %d, the new one %d", was, is)
	}
	for _, from := range []bool{true, false} { // as QEMU does when its guest has left
		if _, err := f.Pair[0].Base(from); err != nil {
			t.Fatal(err)
		}
	}
	if b.dev.log != nil || b.dev.mem.Log() != nil {
		t.Error("the log is mapped, and no ring is in use")
	}
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
}

// TestLogGoes ends the session of a frontend that shrinks its log, in either direction.
func TestLogGoes(t *testing.T) {
	t.Parallel()
	for _, from := range []bool{true, false} {
		b := newBench(t, 1)
		f := b.guest(frontend.Config{})
		if err := b.logged(f).Shrink(); err != nil {
			t.Fatal(err)
		}
		if from {
			f.Pair[0].Send(append(make([]byte, frontend.Header), ether(60, 1)...))
		} else if r := b.send(new(Sender), 0, []byte{0}, ether(60, 0)); r != Down {
			t.Errorf("a frame that cannot be logged: %d", r)
		}
		if err := b.end(); err == nil || !strings.Contains(err.Error(), "its log of written pages is gone") {
			t.Errorf("from the guest %v: %v", from, err)
		}
		_ = f.Close()
		f = b.guest(frontend.Config{})
		if err := b.hangup(f); err != nil {
			t.Error(err)
		}
	}
}

// TestShortLog ends the session before anything is written that the log has no bits for.
func TestShortLog(t *testing.T) {
	t.Parallel()
	type try = func(*frontend.Frontend, *frontend.Log) error
	short := func(size uint64) try {
		return func(f *frontend.Frontend, l *frontend.Log) error {
			_, fd := f.Memory()
			return errors.Join(f.Send(frontend.SetLogBase, 1, frontend.Words(size, 0), fd), l.Ask(true))
		}
	}
	for _, tt := range []struct {
		name, want string
		do         try
	}{
		{"log of a byte", "a log of 1 bytes does not cover", short(1)},
		{"shorter log", "SET_LOG_BASE: a log of 8 bytes", func(f *frontend.Frontend, l *frontend.Log) error {
			_, fd := f.Memory()
			return errors.Join(l.Start(), f.Send(frontend.SetLogBase, 1, frontend.Words(8, 0), fd))
		}},
		{"memory outside", "does not cover 4096 bytes", func(f *frontend.Frontend, l *frontend.Log) error {
			_, fd := f.Memory()
			return errors.Join(l.Start(), f.Tell(frontend.AddMemReg,
				append(frontend.Words(0), frontend.Region(1<<50, 4096, 1<<50, 0)...), fd))
		}},
		{"last memory", "does not cover 4096 bytes", func(f *frontend.Frontend, l *frontend.Log) error {
			_, fd := f.Memory()
			const at = 1<<64 - 4097
			return errors.Join(l.Start(), f.Tell(frontend.AddMemReg,
				append(frontend.Words(0), frontend.Region(at, 4096, 1<<50, 0)...), fd))
		}},
		{"used ring outside", "the log does not cover", func(f *frontend.Frontend, l *frontend.Log) error {
			start, _ := f.Pair[0].Room(false)
			user := f.User() + uint64(start)
			return errors.Join(l.Start(), f.Tell(frontend.SetVringAddr,
				append(frontend.Halves(0, 1), frontend.Words(user, user, user, 1<<64-8)...)))
		}},
	} {
		b := newBench(t, 1)
		f := b.guest(frontend.Config{})
		_ = tt.do(f, b.newLog(f))
		if err := b.end(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		_ = f.Close()
	}
}

// TestAnnounces passes the address of a guest that has arrived.
func TestAnnounces(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	announced := make(chan net.HardwareAddr, 1)
	b.dev.Announce = func(mac net.HardwareAddr) { announced <- mac }
	f := b.guest(frontend.Config{})
	if err := f.Tell(frontend.SendRARP, []byte{0x52, 0x54, 0, 1, 2, 3, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if got := (<-announced).String(); got != "52:54:00:01:02:03" {
		t.Error(got)
	}
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
}
