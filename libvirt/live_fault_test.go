package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// keepalive asks for the daemon's pings (VIR_DRV_FEATURE_PROGRAM_KEEPALIVE), one a second here;
// it would hang up after the second one without an answer.
func (l *live) keepalive(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	supportsFeature := procedure{remoteProgram, 60, "CONNECT_SUPPORTS_FEATURE"}
	var supported int32
	err := c.call(ctx, supportsFeature, func(e *encoder) { e.int32(10) }, func(d *decoder) { supported = d.int32() })
	if err != nil || supported != 1 {
		t.Fatalf("supported %d, %v", supported, err)
	}
	select {
	case <-c.Done():
		t.Fatal(c.Err())
	case <-time.After(3500 * time.Millisecond):
	}
	if _, _, err := c.State(ctx, dom); err != nil {
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
			if _, err := from.LookupByName(ctx, fmt.Sprint("nobody", i)); !errors.Is(err, ErrNoDomain) || !strings.Contains(err.Error(), fmt.Sprint("nobody", i)) {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// cancelled gives up while the daemon stands still, and goes on with the connection.
func (l *live) cancelled(t *testing.T) {
	c, dom := l.dial(t)
	pid := l.daemon.PID()
	signal(t, pid, syscall.SIGSTOP)
	defer signal(t, pid, syscall.SIGCONT)
	if _, _, err := c.State(within(t, 100*time.Millisecond), dom); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("state: %v", err)
	}
	if _, err := c.Subscribe(within(t, 100*time.Millisecond), &dom, 1, Lifecycle); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("subscribe: %v", err)
	}
	if _, err := Dial(within(t, 100*time.Millisecond), l.daemon.Socket()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	signal(t, pid, syscall.SIGCONT)
	if state, _, err := c.State(within(t, 20*time.Second), dom); err != nil || state != StatePaused {
		t.Errorf("state %d, %v", state, err)
	}
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// restart kills the daemon with a call and a subscription open; the guest lives on.
func (l *live) restart(t *testing.T) {
	c, dom := l.dial(t)
	s, err := c.Subscribe(within(t, 20*time.Second), &dom, 1, Lifecycle)
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
	time.Sleep(50 * time.Millisecond)
	signal(t, pid, syscall.SIGKILL)
	if err := <-inFlight; !errors.Is(err, ErrNoConnection) || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("in flight: %v", err)
	}
	<-c.Done()
	if _, open := <-s.C; open {
		t.Error("the subscription is open")
	}
	if _, _, err := c.State(t.Context(), dom); !errors.Is(err, ErrNoConnection) {
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
