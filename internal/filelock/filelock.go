// Package filelock has a lock that only one process at a time holds, and that ends with its holder.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// poll is how often Take tries again.
const poll = 10 * time.Millisecond

// Take waits until no other process has the lock of that path, and takes it (flock(2)). It makes
// the file, which only its owner may open: a user who may open it could keep the lock. rival says
// what may have it, for the error when ctx ends. unlock gives the lock back, and leaves the file.
func Take(ctx context.Context, path, rival string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f.Close, nil
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
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
	}
}
