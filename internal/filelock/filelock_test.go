package filelock_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// TestBrief has several holders, one after another, of a lock whose file is removed each time.
func TestBrief(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var held atomic.Int32
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				unlock, err := filelock.Brief(path)
				if err != nil {
					t.Error(err)
					return
				}
				if n := held.Add(1); n != 1 {
					t.Errorf("%d hold it", n)
				}
				held.Add(-1)
				if err := unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock's file: %v", err)
	}
}
