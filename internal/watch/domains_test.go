package watch

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"vmnet/libvirt"
)

// TestWithoutLibvirt: it is no failure if libvirt is not installed and the user has not named it;
// it is a failure if libvirt does not answer.
func TestWithoutLibvirt(t *testing.T) {
	absent := fmt.Errorf("%w: %w", libvirt.ErrNoConnection, errors.Join(syscall.ENOENT, syscall.ENOENT))
	stopped := fmt.Errorf("%w: %w", libvirt.ErrNoConnection, errors.Join(syscall.ENOENT, syscall.ECONNREFUSED))
	for _, test := range []struct {
		mayBeAbsent bool
		err         error
		failure     bool
	}{{true, absent, false}, {false, absent, true}, {true, stopped, true}, {true, libvirt.ErrAccessDenied, true}} {
		w := &watcher{Config: Config{MayBeAbsent: test.mayBeAbsent}}
		if r := w.withoutLibvirt(test.err); (r.Err != nil) != test.failure || r.Text == "" {
			t.Errorf("%+v: %+v", test, r)
		}
	}
}
