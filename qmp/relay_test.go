package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeRelay is a Relay to a fake's socket. It does what libvirt does: gives commands ids of its
// own, and does not keep their order if they are many.
type fakeRelay struct {
	uc     *net.UnixConn
	events chan Event
	ended  chan struct{}
	closed atomic.Int32

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan string
}

// relayTo is a Relay to what listens there.
func relayTo(path string) (*fakeRelay, error) {
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	r := &fakeRelay{
		uc: uc, events: make(chan Event, 10_000), ended: make(chan struct{}),
		waiting: map[uint64]chan string{},
	}
	go r.read()
	return r, nil
}

func (r *fakeRelay) read() {
	defer close(r.ended)
	for lines := bufio.NewScanner(r.uc); lines.Scan(); {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) != nil || m.QMP != nil {
			continue
		}
		if m.Event != "" {
			r.events <- Event{Name: m.Event, Data: m.Data, Time: m.time()}
			continue
		}
		r.mu.Lock()
		ch := r.waiting[*m.id()]
		delete(r.waiting, *m.id())
		r.mu.Unlock()
		if ch != nil {
			ch <- strings.Replace(lines.Text(), fmt.Sprintf(`"id": %d`, *m.id()), `"id": "libvirt-7"`, 1)
		}
	}
}

func (r *fakeRelay) Command(ctx context.Context, command string, f *os.File) (string, error) {
	if strings.Contains(command, "query-version") {
		return `{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "id": "libvirt-1"}`, nil
	}
	var c map[string]any
	if err := json.Unmarshal([]byte(command), &c); err != nil || c["id"] != nil {
		return "", fmt.Errorf("a command for libvirt: %s: %v", command, err)
	}
	ch := make(chan string, 1)
	r.mu.Lock()
	r.lastID++
	c["id"] = r.lastID
	r.waiting[r.lastID] = ch
	text, _ := json.Marshal(c)
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_, _, err := r.uc.WriteMsgUnix(append(text, '\n'), rights, nil)
	r.mu.Unlock()
	if err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.ended:
			err = fmt.Errorf("%w: the domain has ended", ErrClosed)
		case answer := <-ch:
			return answer, nil
		}
	} else {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	select {
	case answer := <-ch: // one that has come counts more than an end
		return answer, nil
	default:
		return "", err
	}
}

func (r *fakeRelay) Event(ctx context.Context) (Event, error) {
	select {
	case e := <-r.events:
		return e, nil
	case <-ctx.Done():
		return Event{}, ctx.Err()
	case <-r.ended:
	}
	select {
	case e := <-r.events:
		return e, nil
	default:
		return Event{}, fmt.Errorf("%w: the domain has ended", ErrClosed)
	}
}

func (r *fakeRelay) Close() error {
	r.closed.Add(1)
	return r.uc.Close()
}

// relayedConn is fakeConn through a Relay.
func relayedConn(t *testing.T, serve func(*session)) *Conn {
	t.Helper()
	r, err := relayTo(fake(t, serve))
	if err != nil {
		t.Fatal(err)
	}
	return throughT(t, r)
}

func throughT(t *testing.T, r Relay) *Conn {
	t.Helper()
	c, err := Through(within(t, 10*time.Second), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// bothWays runs a test with each way to a fake.
func bothWays(t *testing.T, run func(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn)) {
	t.Run("socket", func(t *testing.T) { run(t, fakeConn) })
	t.Run("relay", func(t *testing.T) { run(t, relayedConn) })
}

// holder is a Relay by who holds the monitor's socket.
type holder struct{ *Conn }

func (h holder) Command(ctx context.Context, text string, f *os.File) (string, error) {
	var c struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return "", err
	}
	var args any
	if c.Arguments != nil {
		args = c.Arguments
	}
	var reply json.RawMessage
	err := h.Execute(ctx, c.Execute, args, &reply)
	var refusal *Error
	if errors.As(err, &refusal) {
		answer, err := json.Marshal(map[string]any{"error": map[string]string{
			"class": refusal.Class,
			"desc":  refusal.Desc,
		}})
		return string(answer), err
	}
	return fmt.Sprintf(`{"return": %s}`, reply), err
}

func (h holder) Event(ctx context.Context) (Event, error) {
	<-ctx.Done()
	return Event{}, ErrClosed
}

func TestThrough(t *testing.T) {
	r, err := relayTo(fake(t, answer))
	if err != nil {
		t.Fatal(err)
	}
	c := throughT(t, r)
	if major, minor, micro := c.Version(); major != 7 || minor != 2 || micro != 22 || c.Peer() != (Peer{}) {
		t.Errorf("version %d.%d.%d, peer %+v", major, minor, micro, c.Peer())
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil || r.closed.Load() != 1 {
		t.Errorf("closed %d times, %v", r.closed.Load(), err)
	}
	if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err = relayTo(fake(t, answer)); err != nil {
		t.Fatal(err)
	}
	if _, err := Through(ctx, r); !errors.Is(err, context.Canceled) || r.closed.Load() != 1 {
		t.Errorf("closed %d times, %v", r.closed.Load(), err)
	}
}

// faulty is a Relay whose commands fail or are answered as its field says.
type faulty struct {
	Relay
	answer string
	err    error
}

func (f *faulty) Command(ctx context.Context, command string, file *os.File) (string, error) {
	if strings.Contains(command, "stop") {
		return f.answer, f.err
	}
	return f.Relay.Command(ctx, command, file)
}

func TestRelayFaults(t *testing.T) {
	busy := errors.New("busy with another job")
	for name, tc := range map[string]struct {
		answer string
		err    error
		want   error
		ends   bool
	}{
		"answered":           {`{"return": {}, "id": "libvirt-2"}`, nil, nil, false},
		"refused by libvirt": {"", busy, busy, false},
		"the domain ended":   {"", fmt.Errorf("%w: %w", ErrClosed, busy), ErrClosed, true},
		"garbage":            {"{{", nil, ErrProtocol, true},
		"neither":            {`{"id": 2}`, nil, ErrProtocol, true},
		"nothing":            {"", nil, ErrProtocol, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := relayTo(fake(t, answer))
			if err != nil {
				t.Fatal(err)
			}
			c := throughT(t, &faulty{r, tc.answer, tc.err})
			sub := c.Subscribe(1)
			if err := c.Execute(within(t, 20*time.Second), "stop", nil, nil); !errors.Is(err, tc.want) ||
				errors.Is(err, ErrUnanswered) || refused(err) {
				t.Errorf("stop: %v", err)
			}
			if err := c.undo(within(t, 20*time.Second), "stop", nil); !errors.Is(err, tc.want) ||
				errors.Is(err, ErrUnanswered) {
				t.Errorf("undo: %v", err)
			}
			if err := c.Execute(within(t, 20*time.Second), "x", nil, nil); errors.Is(err, tc.want) != tc.ends &&
				tc.want != nil {
				t.Errorf("afterwards: %v", err)
			}
			if !tc.ends {
				return
			}
			<-c.Done()
			if _, open := <-sub.C; open || !errors.Is(c.Err(), tc.want) {
				t.Errorf("open %v, %v", open, c.Err())
			}
		})
	}
}

// TestRelayKeepsTheOrder: also of the undo of a command whose answer nobody awaits any more; what
// nobody waits for is not sent, and files may be closed by then.
func TestRelayKeepsTheOrder(t *testing.T) {
	first, release := make(chan struct{}), make(chan struct{})
	seen := make(chan request, 10)
	c := relayedConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			seen <- r
			if r.Execute == "getfd" && r.Arguments["fdname"] == "a" {
				close(first)
				<-release
			}
			s.Say(r.Returns("{}"))
		}
	})
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { got <- c.GetFD(ctx, "a", f) }()
	<-first
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) || refused(err) {
		t.Error(err)
	}
	_ = f.Close()
	if err := c.Execute(within(t, 20*time.Millisecond), "nobody-waits", nil, nil); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := c.undo(ctx, "closefd", fdName("a")); !errors.Is(err, ErrUnanswered) {
		t.Error(err)
	}
	go func() { got <- c.GetFD(within(t, 10*time.Second), "b", nullFile(t)) }()
	close(release)
	if err := <-got; err != nil {
		t.Error(err)
	}
	for _, want := range []struct {
		command, name string
		files         int
	}{{"getfd", "a", 1}, {"closefd", "a", 0}, {"getfd", "b", 1}} {
		if r := <-seen; r.Execute != want.command || r.Arguments["fdname"] != want.name || r.Files != want.files {
			t.Errorf("got %+v, want %+v", r, want)
		}
	}
}

// TestRelayIsBounded: a QEMU that never answers does not make the queue grow for ever.
func TestRelayIsBounded(t *testing.T) {
	c := relayedConn(t, swallow)
	ctx, cancel := context.WithCancel(t.Context())
	var err error
	for n := 0; err == nil; n++ {
		if n > maxOrders+1 {
			t.Fatalf("%d commands wait", n)
		}
		_, err = c.send(ctx, &pending{command: "x"}, nil, nil)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
	cancel()
}

// TestRelayedPlugWhileQEMUFallsSilent: Close gives away the whole way back, in any order.
func TestRelayedPlugWhileQEMUFallsSilent(t *testing.T) {
	for _, tc := range []struct {
		mute       string
		sent, left []string
	}{
		{"getfd", plugged[:2], []string{"closefd n-netns"}},
		{"netdev_add", plugged[:8], restored},
		{"device_add", plugged, append([]string{"device_del n"}, restored...)},
	} {
		t.Run(tc.mute, func(t *testing.T) {
			t.Parallel()
			g, ctx := silentFrom(t, tc.mute)
			c := relayedConn(t, g.serve)
			start := time.Now()
			if err := c.Plug(ctx, testNIC(), testFiles(t)); !errors.Is(err,
				context.DeadlineExceeded) || !errors.Is(err, ErrUnanswered) {
				t.Errorf("got %v", err)
			}
			_ = c.Close()
			if d := time.Since(start); d > undoReply+leavePatience+10*time.Second {
				t.Errorf("took %v", d)
			}
			got := g.commands()
			if len(got) < len(tc.sent) {
				t.Fatalf("commands %q", got)
			}
			left := slices.Sorted(slices.Values(got[len(tc.sent):]))
			if diff := cmp.Diff(tc.sent, got[:len(tc.sent)]); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(tc.left)), left); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
		})
	}
}
