package qmp

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
)

func TestDialNegotiates(t *testing.T) {
	path := fake(t, func(s *session) {
		s.Say(qmptest.Greeting)
		r, _ := s.Next()
		// Events may come before the reply.
		s.Say(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}`, r.Returns("{}"))
		answer(s)
	})
	c := dialT(t, path)
	if major, minor, micro := c.Version(); major != 7 || minor != 2 || micro != 22 {
		t.Errorf("version %d.%d.%d, want 7.2.22", major, minor, micro)
	}
	if want := (Peer{os.Getpid(), os.Getuid(), os.Getgid()}); c.Peer() != want {
		t.Errorf("peer %+v, want %+v", c.Peer(), want)
	}
	if err := c.Execute(within(t, 20*time.Second), "stop", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestDialLongPath(t *testing.T) {
	path := fake(t, func(s *session) { s.Negotiate(); answer(s) })
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(deep, "qmp.sock")
	if err := os.Rename(path, long); err != nil {
		t.Fatal(err)
	}
	dialT(t, long)
	if _, err := Dial(within(t, 20*time.Second), long+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("long path that is not there: %v", err)
	}
}

func TestDialRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	_, err := Dial(within(t, 20*time.Second), filepath.Join(dir, "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	dead := filepath.Join(dir, "dead")
	nstest.LeaveSocket(t, "unix", dead)
	if _, err = Dial(within(t, 20*time.Second), dead); !errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, ErrBusy) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestDialCheckPeerComesBeforeTheGreeting(t *testing.T) {
	path := fake(t, swallow) // never greets
	stranger := errors.New("not QEMU")
	_, err := Dialer{CheckPeer: func(p Peer, _ *os.File) error {
		if p.PID != os.Getpid() {
			t.Errorf("peer %+v", p)
		}
		return stranger
	}}.Dial(within(t, 20*time.Second), path)
	if !errors.Is(err, stranger) {
		t.Errorf("got %v", err)
	}
}

func TestDialBusy(t *testing.T) {
	path := fake(t, swallow)
	waits := 0
	_, err := Dialer{Waiting: func() { waits++ }}.Dial(within(t, 700*time.Millisecond), path)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if waits != 1 {
		t.Errorf("Waiting was called %d times", waits)
	}

	cause := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := Dial(ctx, path); !errors.Is(err, cause) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

func TestDialFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp.sock")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(l) }()
	if err := errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: path}), unix.Listen(l, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path) // a backlog of 0 has room for one
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	waits := 0
	d := Dialer{Waiting: func() { waits++ }}
	if _, err := d.Dial(within(t, 2*patience), path); !errors.Is(err, ErrBusy) ||
		!errors.Is(err, context.DeadlineExceeded) || waits != 1 {
		t.Errorf("full backlog: %v, said %d times that it waits", err, waits)
	}

	// With room again, the retry gets in.
	served, waiting := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(served)
		<-waiting
		_ = first.Close()
		for range 2 {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			f := os.NewFile(uintptr(fd), "accepted")
			conn, err := net.FileConn(f)
			_ = f.Close()
			if err == nil {
				s := &session{Conn: conn.(*net.UnixConn)}
				s.Negotiate()
				_ = conn.Close()
			}
		}
	}()
	c, err := Dialer{Waiting: func() { close(waiting) }}.Dial(within(t, 20*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	<-served
}

func TestDialStrangers(t *testing.T) {
	for name, tc := range map[string]struct {
		say  string
		want error
	}{
		"hangs up":                {"", ErrClosed},
		"not JSON":                {"SSH-2.0-OpenSSH_9.2\n", ErrProtocol},
		"no greeting":             {`{"return": {}}` + "\n", ErrProtocol},
		"two greetings":           {qmptest.Greeting + "\n" + qmptest.Greeting + "\n", ErrProtocol},
		"half a greeting":         {qmptest.Greeting[:40], ErrClosed},
		"not an object":           {"[]\n", ErrProtocol},
		"endless text":            {strings.Repeat("x", 1<<20) + "\n", ErrProtocol},
		"white space, then leave": {"\r\n\r\n", ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			path := fake(t, func(s *session) { _, _ = s.Conn.Write([]byte(tc.say)) })
			_, err := Dial(within(t, 20*time.Second), path)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if err != nil && len(err.Error()) > 600 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// TestFormerClient: QEMU answers a command whose client has gone to the next one, before the
// greeting or after it.
func TestFormerClient(t *testing.T) {
	stale := []string{
		`{"return": {}, "id": "libvirt-7"}`, `{"id": {"a": [1]}, "error": {"class": "GenericError", "desc": "no"}}`,
		`{"return": []}`,
		`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`, `{"return": null, "id": null}`,
		`{"return": "` + strings.Repeat("x", 900<<10) + `", "id": 1}`,
		`{"id": 1, "error": {"class": "GenericError", "desc": "no"}}`, `{"return": {}, "id": 2}`,
		`{"return": 7, "id": -1}`, `{"return": 7, "id": 1.5}`,
	}
	event := `{"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}`
	for name, say := range map[string]struct{ before, after []string }{
		"before the greeting": {slices.Concat(stale, []string{event}), nil},
		"after it":            {nil, stale},
		"both":                {stale[:3], stale[3:]},
	} {
		t.Run(name, func(t *testing.T) {
			path := fake(t, func(s *session) {
				s.Say(slices.Concat(say.before, []string{qmptest.Greeting}, say.after)...)
				if r, ok := s.Next(); ok && r.Execute == "qmp_capabilities" {
					s.Say(r.Returns("{}"))
				}
				r, _ := s.Next()
				s.Say(r.Returns(`{"name": "mine"}`))
				answer(s)
			})
			c := dialT(t, path)
			if major, _, _ := c.Version(); major != 7 {
				t.Errorf("version %d", major)
			}
			if got, err := c.Name(within(t, 20*time.Second)); got != "mine" || err != nil {
				t.Errorf("name %q, %v", got, err)
			}
		})
	}
}

// TestFormerClientIsBounded: who never comes to the point is no QEMU.
func TestFormerClientIsBounded(t *testing.T) {
	stale := `{"return": "` + strings.Repeat("x", 100<<10) + `", "id": "old"}` + "\n"
	for name, first := range map[string]string{"before the greeting": "", "after it": qmptest.Greeting + "\n"} {
		c := newConn(&relayed{cancel: func() {}})
		c.register(&pending{command: "qmp_capabilities"})
		sent := &io.LimitedReader{R: &endless{text: stale}, N: 2 * maxStale}
		err := c.readAll(bufio.NewReader(io.MultiReader(strings.NewReader(first), sent)))
		if read := 2*maxStale - sent.N; !errors.Is(err, ErrProtocol) ||
			!strings.Contains(err.Error(), "not for this client") || read > maxStale+1<<20 {
			t.Errorf("%s: %d bytes were read: %v", name, read, err)
		}
		if len(err.Error()) > 500 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

// endless repeats a text.
type endless struct {
	text string
	at   int
}

func (e *endless) Read(p []byte) (n int, err error) {
	n = copy(p, e.text[e.at:])
	e.at = (e.at + n) % len(e.text)
	return n, nil
}
