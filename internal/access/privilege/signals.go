package privilege

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigevent is struct sigevent of asm-generic/siginfo.h, 64 bytes long.
type sigevent struct {
	_      uint64
	_      int32
	notify int32
	_      [48]byte
}

const sigevNone = 1 // SIGEV_NONE

// roomForSignals checks that one real-time signal per thread can be queued now. Go changes all
// threads by sending such a signal to each, and waits for them forever, even if the kernel refuses
// to queue one. A caller with `ulimit -i 0`, or with a queue full of signals to itself, could thus
// keep a privileged process in a busy loop. A POSIX timer takes an entry of the same queue
// (timer_create(2), EAGAIN), and has no effect as long as it is not armed.
func roomForSignals() error {
	const more = 8                           // threads that may start in between
	n, _ := runtime.ThreadCreateProfile(nil) // the threads that Go knows and changes
	n += more
	for range n {
		var id int32
		e := sigevent{notify: sigevNone}
		_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&e)),
			uintptr(unsafe.Pointer(&id)))
		if errno == unix.EAGAIN {
			return fmt.Errorf(
				"the user's queue of pending signals has no room for %d more: raise the limit (ulimit -i) or end the process that fills the queue",
				n)
		}
		if errno != 0 {
			return nil // a kernel without POSIX timers cannot answer
		}
		defer unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(id), 0, 0) //nolint:errcheck // it exists
	}
	return nil
}
