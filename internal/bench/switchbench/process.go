package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// A process is a program that the harness starts in a netns and stops.
type process struct {
	name   string
	cmd    *exec.Cmd
	output tail
	done   chan struct{} // closed when it has ended
}

// tail keeps the first few KiB of a program's output.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b[:min(len(b), 4096-min(4096, t.buf.Len()))])
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}

// A program is what a process runs. The caller closes Files.
type program struct {
	argv  []string
	env   []string   // besides the harness' own
	in    *os.File   // nil for nothing
	files []*os.File // fds 3, 4 and so on
}

// start starts a program in ns. The kernel kills it if the thread that started it ends
// (PR_SET_PDEATHSIG), so only the main goroutine, which is locked to its thread, may call start.
func (prog program) start(ns *netns.NS) (*process, error) {
	p := &process{name: filepath.Base(prog.argv[0]), done: make(chan struct{})}
	p.cmd = exec.Command("nsenter", append([]string{"--net=" + ns.Path()}, prog.argv...)...)
	p.cmd.Env = append(os.Environ(), prog.env...)
	p.cmd.ExtraFiles = prog.files
	if prog.in != nil {
		p.cmd.Stdin = prog.in
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// run runs a program and waits for its end, at most 10 s.
func (prog program) run(ns *netns.NS) error {
	p, err := prog.start(ns)
	if err != nil {
		return err
	}
	defer p.stop()
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s does not end: %s", strings.Join(prog.argv, " "), &p.output)
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s: %s: %s", strings.Join(prog.argv, " "), p.cmd.ProcessState, &p.output)
	}
	return nil
}

// stop ends the process; after three seconds it kills it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(3 * time.Second):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// alive returns an error if the process has exited by itself.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s: %s", p.name, p.cmd.ProcessState, &p.output)
	default:
		return nil
	}
}

// cpu returns the CPU time of all its threads so far.
func (p *process) cpu() (time.Duration, error) { return cpuOf(p.cmd.Process.Pid) }

// cpuOf reads a process's clock (clock_getcpuclockid(3); MAKE_PROCESS_CPUCLOCK in
// include/linux/posix-timers.h): in nanoseconds, where /proc/PID/stat has ticks.
func cpuOf(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// pin keeps all threads of the process on one CPU, or lets them run on all.
func (p *process) pin(cpus *unix.CPUSet) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.cmd.Process.Pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, cpus)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin %s: %w", p.name, err)
		}
	}
	return nil
}
