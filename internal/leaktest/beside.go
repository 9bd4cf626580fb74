package leaktest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// besideEnv holds the command line of a program that runs beside the tests, in their namespaces:
// words without quotes. The program prints "ready" when it is, exits at SIGTERM, and leaves nothing
// behind. Make fresh uses it to run a hostile user's processes: see internal/fresh/hostile.
const besideEnv = "VMNET_TEST_BESIDE"

// besideTime bounds how long the program may take to get ready, or to exit.
const besideTime = time.Minute

// beside is that program, or nil if there is none.
type beside struct {
	process *os.Process
	ended   bool
	status  unix.WaitStatus
}

// startBeside starts the program if one is asked for, and waits until it is ready. The tests do not
// see the variable. The calling thread must not end before the program does.
func startBeside() (*beside, error) {
	argv := strings.Fields(os.Getenv(besideEnv))
	if err := os.Unsetenv(besideEnv); err != nil || len(argv) == 0 {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{nil, w, os.Stderr}, Sys: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL},
	})
	_ = w.Close()
	if err != nil {
		return nil, fmt.Errorf("run %s beside the tests: %w", argv[0], err)
	}
	if err := r.SetReadDeadline(time.Now().Add(besideTime)); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("%s, beside the tests, says %q", argv[0], line), ignoreEOF(err))
	}
	return &beside{process: process}, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// reaped records that a child of this process has exited.
func (b *beside) reaped(pid int, status unix.WaitStatus) {
	if b != nil && pid == b.process.Pid {
		b.ended, b.status = true, status
	}
}

// stop ends the program. It is an error if the program failed or exited earlier: the tests have
// disturbed it then.
func (b *beside) stop() error {
	if b == nil {
		return nil
	}
	if b.ended {
		return fmt.Errorf("the program beside the tests exited before them: %#x", b.status)
	}
	if err := b.process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(besideTime, func() { _ = b.process.Kill() })
	defer late.Stop()
	for !b.ended {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b.reaped(pid, status)
	}
	if b.status != 0 {
		return fmt.Errorf("the program beside the tests failed: %#x", b.status)
	}
	return nil
}
