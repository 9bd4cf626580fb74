package watch

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestSwitches: NICs are to join when there is a new control socket, at first and at a path where
// another one was, and not otherwise.
func TestSwitches(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	listen := func() net.Listener {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := listen()
	var attempts []bool // whether each was the last one
	joined := make(chan struct{}, 100)
	s := newSwitches(
		func(context.Context) ([]nic.Action, error) {
			joined <- struct{}{}
			return nil, errors.New("not yet")
		},
		func(_ []nic.Action, err error, last bool) bool {
			attempts = append(attempts, last && err != nil)
			return err != nil
		},
	)
	s.every = time.Millisecond
	looks := make(chan struct{})
	s.list = func() ([]string, error) {
		<-looks
		return []string{path, path + "-of-none"}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.work(ctx)
	}()
	look := func(times, joins int) {
		t.Helper()
		for range times {
			looks <- struct{}{}
		}
		nstest.Eventually(t, 20*time.Second, "NICs have joined as often as they should", func() bool {
			return len(joined) == joins
		})
	}
	look(rejoins+2, rejoins)
	_ = l.Close()
	look(1, rejoins) // the path is gone
	l = listen()
	defer l.Close()
	look(rejoins+1, 2*rejoins)
	cancel()
	close(looks)
	<-done
	for i, last := range attempts {
		if last != (i%rejoins == rejoins-1) {
			t.Errorf("attempts %v: want each third one to be the last", attempts)
			break
		}
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}
