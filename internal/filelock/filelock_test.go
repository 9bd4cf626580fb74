package filelock_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/filelock"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// Another open file of the same process counts as another holder, as flock(2) says.
func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := filelock.Take(t.Context(), path, "another test has it")
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := filelock.Take(ctx, path, "another test has it"); !errors.Is(err, stop) ||
		!strings.HasSuffix(err.Error(), "stopped (another test has it)") {
		t.Errorf("a lock that is held: %v", err)
	}
	taken := make(chan error, 1)
	go func() {
		again, err := filelock.Take(t.Context(), path, "")
		if err == nil {
			err = again()
		}
		taken <- err
	}()
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Errorf("after it was given back: %v", err)
	}
}
