// Package child runs the programs that a network consists of, as children that die with this
// process.
package child

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	stopTimeout = 2 * time.Second // from SIGTERM to SIGKILL
	pipeTimeout = time.Second     // for the rest of a program's words after its end
	maxWords    = 2048            // bytes of them that are kept
)

// A Process is a running program. The kernel kills it when this process ends.
type Process struct {
	cmd   *exec.Cmd
	words tail
	done  chan struct{} // closed when it has ended
	err   error         // why, once done is closed
}

// Start starts a program. do calls a function in the namespace that the program is to be in; nil
// is this process's. Start sets Pdeathsig of the command's SysProcAttr, and its Stderr, of whose
// text the end is kept for errors.
func Start(cmd *exec.Cmd, do func(func() error) error) (*Process, error) {
	if do == nil {
		do = func(f func() error) error { return f() }
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	p.cmd.Stderr, p.cmd.WaitDelay = &p.words, pipeTimeout
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	go func() {
		// The thread that starts the program must outlive it: Pdeathsig is about the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := do(func() error {
			err := p.cmd.Start()
			started <- err
			if err == nil {
				p.err = p.cmd.Wait()
				close(p.done)
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends the program a signal.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.cmd.Path, err)
	}
	return nil
}

// Done returns a channel that is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Failure returns the error for a program that ended although nobody asked it to. It must have
// ended.
func (p *Process) Failure() error {
	err := p.err
	if err == nil {
		err = errors.New("it has ended")
	}
	return fmt.Errorf("%s: %w: %s", p.cmd.Path, err, strings.TrimSpace(p.words.String()))
}

// Wait returns when ctx ends, or with an error when one of the programs does.
func Wait(ctx context.Context, all ...*Process) error {
	first := make(chan *Process, len(all))
	for _, p := range all {
		go func() {
			<-p.done // at the latest by Stop
			first <- p
		}()
	}
	select {
	case p := <-first:
		return p.Failure()
	case <-ctx.Done():
		return nil
	}
}

// Stop ends the programs, and waits for that.
func Stop(all ...*Process) error {
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	late := time.After(stopTimeout)
	for _, p := range all {
		select {
		case <-p.done:
			continue
		case <-late:
		}
		for _, p := range all {
			_ = p.cmd.Process.Kill()
		}
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			return fmt.Errorf("process %d of %s does not end after SIGKILL", p.PID(), p.cmd.Path)
		}
	}
	return nil
}

// tail keeps the last bytes that are written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxWords):]
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
