package privilege

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Reserve makes the next Keep leave further capabilities permitted, as far as the process has them,
// but effective only in With.
func (p *Process) Reserve(values ...cap.Value) { p.reserve = bits(values...) & p.start.prm }

// With runs f with the reserved capabilities in effect, in the calling thread alone: f must start
// no goroutine that needs them. It runs f even if none is reserved.
func (p *Process) With(f func() error) error {
	if p.reserve == 0 || p.dropped {
		return f()
	}
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("read own capabilities: %w", err)
	}
	raised := before
	raised[0].Effective |= uint32(p.reserve)
	raised[1].Effective |= uint32(p.reserve >> 32)
	if err := unix.Capset(&header, &raised[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("use the reserved capabilities: %w", err)
	}
	err := f()
	if lowerErr := unix.Capset(&header, &before[0]); lowerErr != nil {
		// the thread stays locked
		return errors.Join(err, fmt.Errorf("give up the reserved capabilities: %w", lowerErr))
	}
	runtime.UnlockOSThread()
	return err
}
