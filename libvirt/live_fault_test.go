package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

// keepalive requests pings from the daemon (VIR_DRV_FEATURE_PROGRAM_KEEPALIVE), here one per
// second. The daemon would hang up after the second ping without an answer.
func (l *live) keepalive(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	supportsFeature := procedure{remoteProgram, 60, "CONNECT_SUPPORTS_FEATURE", func(d *decoder) { d.int32() }}
	supported, err := ask(ctx, c, &call{procedure: supportsFeature}, func() (int32, error) {
		return c.lib.ConnectSupportsFeature(10)
	})
	if err != nil || supported != 1 {
		t.Fatalf("supported %d, %v", supported, err)
	}
	select {
	case <-c.Done():
		t.Fatal(c.Err())
	case <-time.After(3500 * time.Millisecond):
	}
	if _, err := c.IsPersistent(ctx, dom); err != nil {
		t.Error(err)
	}
}

func (l *live) manyAtOnce(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	var all sync.WaitGroup
	for i := range 20 {
		from := []*Conn{c, other}[i%2]
		all.Go(func() {
			if _, err := from.XML(ctx, dom, 0); err != nil {
				t.Error(err)
			}
			if _, err := from.LookupByName(ctx, fmt.Sprint("nobody", i)); !errors.Is(err, ErrNoDomain) ||
				!strings.Contains(err.Error(), fmt.Sprint("nobody", i)) {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// cancelled cancels calls while the daemon is stopped, then goes on with the connection.
func (l *live) cancelled(t *testing.T) {
	c, dom := l.dial(t)
	pid := l.daemon.PID()
	signal(t, pid, syscall.SIGSTOP)
	defer signal(t, pid, syscall.SIGCONT)
	for name, call := range l.calls(t, c, dom) {
		start := time.Now()
		err := call(within(t, 50*time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(start))
		}
	}
	signal(t, pid, syscall.SIGCONT)
	if persistent, err := c.IsPersistent(within(t, 20*time.Second), dom); err != nil || !persistent {
		t.Errorf("persistent %v, %v", persistent, err)
	}
}

// calls are all queries: none changes anything if it is answered late.
func (l *live) calls(t *testing.T, c *Conn, dom Domain) map[string]func(context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	const query = `{"execute":"query-name"}`
	return map[string]func(context.Context) error{
		"dial":       func(ctx context.Context) error { _, err := Dial(ctx, l.daemon.Socket()); return err },
		"list":       func(ctx context.Context) error { _, err := c.ListDomains(ctx, 0); return err },
		"by name":    func(ctx context.Context) error { _, err := c.LookupByName(ctx, dom.Name); return err },
		"by UUID":    func(ctx context.Context) error { _, err := c.LookupByUUID(ctx, dom.UUID); return err },
		"XML":        func(ctx context.Context) error { _, err := c.XML(ctx, dom, 0); return err },
		"persistent": func(ctx context.Context) error { _, err := c.IsPersistent(ctx, dom); return err },
		"attach":     func(ctx context.Context) error { return c.AttachDevice(ctx, dom, "<none/>", AffectLive) },
		"by alias":   func(ctx context.Context) error { return c.DetachDeviceAlias(ctx, dom, "ua-none", AffectLive) },
		"metadata": func(ctx context.Context) error {
			_, err := c.Metadata(ctx, dom, testURI, AffectLive)
			return err
		},
		"set it":  func(ctx context.Context) error { return c.SetMetadata(ctx, dom, "x", testURI, "", AffectLive) },
		"command": func(ctx context.Context) error { _, err := c.MonitorCommand(ctx, dom, query); return err },
		"with a file": func(ctx context.Context) error {
			_, _, err := c.MonitorCommandWithFiles(ctx, dom, query, w)
			return err
		},
		"subscribe": func(ctx context.Context) error {
			_, err := c.Subscribe(ctx, &dom, 1, Lifecycle)
			return err
		},
		"monitor events": func(ctx context.Context) error {
			_, err := c.SubscribeMonitor(ctx, &dom, 1, "STOP")
			return err
		},
	}
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// subscribeAndClose closes connections while their subscriptions end, which has crashed libvirtd
// 9.0 (see Conn.awaitQuiet). It takes 2 seconds, or up to VMNET_SOAK for all rounds.
func (l *live) subscribeAndClose(t *testing.T) {
	const rounds = 1500
	limit := 2 * time.Second
	if soak := os.Getenv("VMNET_SOAK"); soak != "" {
		var err error
		if limit, err = time.ParseDuration(soak); err != nil {
			t.Fatal(err)
		}
	}
	pid := l.daemon.PID()
	made, start := 0, time.Now()
	for made < rounds && time.Since(start) < limit {
		c, dom := l.dial(t)
		ctx := within(t, 20*time.Second)
		for _, of := range []*Domain{nil, &dom} {
			s, err := c.Subscribe(ctx, of, 1, Lifecycle, DeviceRemoved)
			if err != nil {
				t.Fatalf("round %d: %v", made, err)
			}
			s.Close()
		}
		if _, err := c.SubscribeMonitor(ctx, &dom, 1, "STOP"); err != nil {
			t.Fatalf("round %d: %v", made, err)
		}
		_ = c.Close()
		made++
	}
	t.Logf("%d rounds in %s", made, time.Since(start))
	if now := l.daemon.PID(); now != pid {
		t.Errorf("libvirtd was %d and is %d", pid, now)
	}
}

// restart kills the daemon with a call and a subscription open; the guest lives on.
func (l *live) restart(t *testing.T) {
	c, dom := l.dial(t)
	s, err := c.Subscribe(within(t, 20*time.Second), &dom, 1, Lifecycle, Monitor)
	if err != nil {
		t.Fatal(err)
	}
	pid, qemu := l.daemon.PID(), l.daemon.QEMU("standing")
	signal(t, pid, syscall.SIGSTOP)
	inFlight := make(chan error)
	go func() {
		_, err := c.XML(within(t, 20*time.Second), dom, 0)
		inFlight <- err
	}()
	nstest.Eventually(t, 20*time.Second, "the call is in flight", func() bool {
		return nstest.Waiting("libvirt.ask[...]") == 1
	})
	signal(t, pid, syscall.SIGKILL)
	if err := <-inFlight; !errors.Is(err, ErrNoConnection) || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("in flight: %v", err)
	}
	<-c.Done()
	if _, open := <-s.C; open {
		t.Error("the subscription is open")
	}
	if err := s.Err(); !errors.Is(err, ErrNoConnection) {
		t.Error(err)
	}
	if _, err := c.IsPersistent(t.Context(), dom); !errors.Is(err, ErrNoConnection) {
		t.Errorf("afterwards: %v", err)
	}
	s.Close()
	l.daemon.Await()
	c, _ = l.dial(t)
	if reply, err := c.MonitorCommand(within(t, 20*time.Second), dom, `{"execute":"query-name"}`); err != nil {
		t.Errorf("%s, %v", reply, err)
	}
	if now := l.daemon.QEMU("standing"); now != qemu {
		t.Errorf("the guest was %d and is %d", qemu, now)
	}
}
