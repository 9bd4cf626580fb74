package pidfd

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signal sends a signal to the process. One that has ended already is success.
func (h *Handle) Signal(s syscall.Signal) error {
	var err error
	if ctlErr := h.control(func(fd int) { err = unix.PidfdSendSignal(fd, s, nil, 0) }); ctlErr != nil {
		return ctlErr
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %v to process %d: %w", s, h.PID, err)
	}
	return nil
}
