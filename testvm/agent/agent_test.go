package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// pair returns both ends of a connection that buffers, as the port does.
func pair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// testHandlers serve some of the real methods with simple results.
func testHandlers(cancelled *atomic.Int32) map[string]Handler {
	return map[string]Handler{
		MethodHello: Method(func(context.Context, struct{}) (Info, error) { return Info{Kernel: "test"}, nil }),
		MethodExec: Method(func(ctx context.Context, c Command) (Output, error) {
			switch c.Argv[0] {
			case "hang":
				<-ctx.Done()
				cancelled.Add(1)
				return Output{}, ctx.Err()
			case "big":
				return Output{Stdout: strings.Repeat("x", MaxLine)}, nil
			}
			return Output{Stdout: strings.Join(c.Argv, " ")}, nil
		}),
		MethodStream: Streaming(func(ctx context.Context, c Command, send func(any)) (Output, error) {
			n, err := strconv.Atoi(c.Argv[0])
			for i := 0; i < n && ctx.Err() == nil; i++ {
				send(Part{Stdout: fmt.Appendf(nil, "out %d\n", i), Stderr: fmt.Appendf(nil, "err %d\n", i)})
			}
			return Output{Code: n}, err
		}),
		MethodLinks: func(context.Context, json.RawMessage, func(any)) (any, error) { panic("oh") },
		MethodPing:  Method(func(context.Context, struct{}) (any, error) { return nil, errors.New("no reply") }),
	}
}

func start(t *testing.T) (*Guest, *atomic.Int32) {
	t.Helper()
	host, port := pair(t)
	cancelled := new(atomic.Int32)
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), port, testHandlers(cancelled)) }()
	g := NewGuest("P2", host)
	t.Cleanup(func() {
		_ = g.Close()
		// The latter where nobody has read the replies (unix_release_sock in net/unix/af_unix.c).
		if err := <-served; !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("Serve ended with %v, want EOF or ECONNRESET", err)
		}
	})
	return g, cancelled
}

func TestCallsRunAtTheSameTime(t *testing.T) {
	g, _ := start(t)
	errs := make(chan error)
	for i := range 50 {
		go func() {
			want := fmt.Sprintf("echo %d", i)
			out, err := g.Exec(t.Context(), "echo", fmt.Sprint(i))
			if err == nil && out != want {
				err = fmt.Errorf("got %q, want %q", out, want)
			}
			errs <- err
		}()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsNameGuestAndMethod(t *testing.T) {
	g, _ := start(t)
	_, noReply := g.Ping(t.Context(), "10.0.0.1")
	_, panics := g.Links(t.Context())
	_, big := g.Exec(t.Context(), "big")
	for want, err := range map[string]error{
		"guest P2: ping: no reply":                                    noReply,
		"guest P2: links: panic: oh":                                  panics,
		"guest P2: exec: the message is too long":                     big,
		`guest P2: poweroff: unknown method "poweroff"`:               g.PowerOff(t.Context()),
		"guest P2: exec: read the parameters: json: cannot unmarshal": g.call(t.Context(), MethodExec, 7, nil),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestCancelReachesTheGuest(t *testing.T) {
	g, cancelled := start(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("changed my mind")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := g.Exec(ctx, "hang"); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	limited, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := g.Exec(limited, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	nstest.Eventually(t, 20*time.Second, "both requests were cancelled in the guest", func() bool {
		return cancelled.Load() == 2
	})
	g.mu.Lock()
	if len(g.pending) != 0 {
		t.Errorf("%d requests are still pending", len(g.pending))
	}
	g.mu.Unlock()
	if out, err := g.Exec(t.Context(), "next"); err != nil || out != "next" {
		t.Errorf("after late replies: %q, %v", out, err)
	}
}

func TestStreamGivesAllParts(t *testing.T) {
	g, _ := start(t)
	var stdout, stderr strings.Builder
	code, err := g.Stream(t.Context(), Command{Argv: []string{"3"}}, &stdout, &stderr)
	if err != nil || code != 3 || stdout.String() != "out 0\nout 1\nout 2\n" ||
		stderr.String() != "err 0\nerr 1\nerr 2\n" {
		t.Errorf("code %d, %v, %q, %q", code, err, stdout.String(), stderr.String())
	}
	if code, err := g.Stream(t.Context(), Command{Argv: []string{"2"}}, nil, nil); err != nil || code != 2 {
		t.Errorf("without writers: code %d, %v", code, err)
	}
}

// TestStreamThatIsAbandoned: a writer is not used once Stream has returned.
func TestStreamThatIsAbandoned(t *testing.T) {
	g, _ := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	returned := false // the race detector sees a write that comes too late
	_, err := g.Stream(ctx, Command{Argv: []string{"1000000"}}, writerFunc(func([]byte) {
		if returned {
			t.Error("written after the return")
		}
		cancel()
	}), nil)
	returned = true
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if out, err := g.Exec(t.Context(), "next"); err != nil || out != "next" {
		t.Errorf("after it: %q, %v", out, err)
	}
}

type writerFunc func([]byte)

func (w writerFunc) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

func TestGarbageIsSkipped(t *testing.T) {
	host, port := pair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), port, testHandlers(new(atomic.Int32))) }()
	for _, garbage := range []string{
		fmt.Sprintf("\n\n\x00\xff garbage\n[1,2]\n{\"id\": 7}\n%s\n{\"id\":\"half", strings.Repeat("x", MaxLine+10)),
		"\n{\"id\":\"stale\",\"method\":\"hello\"}\n", // its reply matches no request of ours
	} {
		if _, err := host.Write([]byte(garbage)); err != nil {
			t.Fatal(err)
		}
	}
	g := NewGuest("P2", host)
	defer g.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if info, err := g.WaitReady(ctx); err != nil || info.Kernel != "test" {
		t.Errorf("got %+v, %v", info, err)
	}
	_ = g.Close()
	<-served
}

func TestGarbageFromTheGuestIsSkipped(t *testing.T) {
	host, port := pair(t)
	if _, err := port.Write(
		[]byte("reply\": half of an old one\n{}\n\n{\"id\":\"other-1\",\"result\":{}}\n{\"id\":\"torn")); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), port, testHandlers(new(atomic.Int32))) }()
	g := NewGuest("P2", host)
	if out, err := g.Exec(t.Context(), "echo"); err != nil || out != "echo" {
		t.Errorf("got %q, %v", out, err)
	}
	_ = g.Close()
	<-served
}

func TestGuestThatDoesNotReadAndThenGoes(t *testing.T) {
	host, port := pair(t)
	g := NewGuest("P2", host)
	defer g.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := g.Run(ctx, Command{Stdin: strings.Repeat("x", MaxLine/2)}) // more than the socket holds
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody reads: %v", err)
	}
	hung := make(chan error)
	go func() { _, err := g.Links(context.Background()); hung <- err }()
	nstest.Eventually(t, 20*time.Second, "the request runs", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.pending) == 1
	})
	_ = port.Close()
	if err := <-hung; !errors.Is(err, ErrGone) {
		t.Errorf("running request: %v", err)
	}
	<-g.Done()
	if _, err := g.Links(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("later request: %v", err)
	}
}

func TestWaitReadyAsksAgain(t *testing.T) {
	host, port := pair(t)
	g := NewGuest("P2", host)
	defer g.Close()
	asked := make(chan error, 1)
	go func() { // the first request goes to a guest that is then reset
		_, err := port.Read(make([]byte, 4096))
		asked <- err
		_ = Serve(context.Background(), port, testHandlers(new(atomic.Int32)))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := g.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

func TestDialNamesTheGuest(t *testing.T) {
	if _, err := Dial(t.Context(), "P2", t.TempDir()+"/absent"); !errors.Is(err, os.ErrNotExist) ||
		!strings.Contains(err.Error(), "guest P2") {
		t.Errorf("got %v", err)
	}
}
