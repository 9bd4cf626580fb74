// Package filelock has locks that only one process at a time holds, and that end with their holder.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// poll is how often a lock that another process holds is tried again.
const poll = 10 * time.Millisecond

// Take waits until no other process has the lock of that path, and takes it (flock(2)). It makes
// the file, which only its owner may open: a user who may open it could keep the lock. rival says
// what may have it, for the error when ctx ends. unlock gives the lock back, and leaves the file.
func Take(ctx context.Context, path, rival string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(ctx, f, rival); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// patience limits the wait for the locks of Brief and Directory, which other processes hold for a
// few milliseconds.
const patience = 5 * time.Second

// Brief takes the lock of a path as Take does, and waits for at most 5 s. unlock removes the file.
func Brief(path string) (unlock func() error, err error) {
	ctx, cancel := soon()
	defer cancel()
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err = lock(ctx, f, others); err == nil && isStill(f, path) {
			return func() error { return errors.Join(os.Remove(path), f.Close()) }, nil
		}
		if err == nil { // its last holder has removed it
			err = context.Cause(ctx)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// ErrGone is returned if a directory has been removed before it was locked.
var ErrGone = fmt.Errorf("its directory has been removed: %w", fs.ErrNotExist)

// Directory locks a directory, and waits for at most 5 s. Anybody who may read the directory can
// keep its lock.
func Directory(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := soon()
	defer cancel()
	err = lock(ctx, f, others)
	if err == nil && !isStill(f, dir) {
		err = ErrGone
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

const others = "another process has locked it"

func soon() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("waited for %v", patience))
}

// isStill reports whether a path still leads to the file that was opened.
func isStill(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(opened, now)
}

func lock(ctx context.Context, f *os.File, rival string) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = nil
			select {
			case <-ctx.Done():
				err = fmt.Errorf("%w (%s)", context.Cause(ctx), rival)
			case <-time.After(poll):
			}
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
