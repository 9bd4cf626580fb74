// A short-lived program does not need the CPU limit of its cgroup. Go's runtime would open the
// cgroup's files at each start and keep them open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program vmnet-hook is libvirt's hook for QEMU guests: vmnet hook install puts it into
// /etc/libvirt/hooks/qemu.d. Package hook does the work. This program makes it safe to call: it
// ends in time, reports a failure in one line, and never ends a running guest.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/version"
	"vmnet/internal/libvirthook/hook"
)

const (
	// limit is how long the work may take; libvirt itself would wait forever.
	limit = 10 * time.Second
	// grace is the time for the undo. After it the program ends in any case.
	grace = 4 * time.Second
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // the reader of stderr may go away
	if err := fdroom.Check(); err != nil {
		console.Say(os.Stderr, "vmnet-hook", err.Error())
		os.Exit(1)
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program; the result is its exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Fprintln(stdout, version.Text("vmnet-hook"))
		return 0
	}
	h := &handler{stderr: stderr}
	if len(args) == 3 && args[1] == committing {
		return h.commit(args[0], args[2])
	}
	h.args, h.isChild = childArgs(args)
	time.AfterFunc(limit+grace, func() { os.Exit(h.end(fmt.Errorf("gave up after %v", limit+grace))) })
	return h.end(h.call(stdin))
}

// handler is one call of the hook.
type handler struct {
	args    []string
	isChild bool
	stderr  io.Writer
}

// call does the work. If a failure must not reach libvirt, a child process does it, so that libvirt
// does not see a crash either.
func (h *handler) call(stdin io.Reader) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v at %s", p, place())
		}
	}()
	c, err := hook.Read(h.args, stdin, os.Getppid())
	if err != nil || !c.Concerns() {
		return err
	}
	if !h.isChild && !c.MustSucceed() {
		return runChild(h.args, c.XML, h.stderr)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	return backend.In("", func(m *backend.Maker) error {
		done, err := c.Run(ctx, m)
		for _, note := range done.Notes {
			h.say("note: " + note)
		}
		if err == nil && done.Awaits {
			err = commitAfter(c)
		}
		return err
	})
}

// mustSucceed reports whether the operation must succeed, so that libvirt is to see a failure.
func (h *handler) mustSucceed() bool {
	return h.isChild || len(h.args) < 3 || hook.Call{Op: h.args[1], SubOp: h.args[2]}.MustSucceed()
}

// end reports an error and returns the exit status.
func (h *handler) end(err error) int {
	if err == nil {
		return 0
	}
	h.say(err.Error())
	if h.mustSucceed() {
		return 1
	}
	return 0
}

// say writes text to stderr and to the system log. libvirt shows stderr to the user who starts the
// guest if the hook fails, and discards it otherwise.
func (h *handler) say(text string) {
	text = console.Clean(strings.Join(strings.Split(strings.TrimSpace(text), "\n"), "; "))
	fmt.Fprintf(h.stderr, "vmnet-hook: %s\n", text)
	log(text)
}

// place returns where a panic came from: the innermost file of vmnet on the stack.
func place() string {
	for l := range strings.Lines(string(debug.Stack())) {
		if l = strings.TrimSpace(l); strings.Contains(l, ".go:") && strings.Contains(l, "vmnet/") &&
			!strings.Contains(l, "vmnet-hook/") {
			return l
		}
	}
	return "an unknown place"
}

// supervised is the argument, after libvirt's, that marks a child.
const supervised = "supervised"

// childArgs returns libvirt's arguments, and whether this process is the child.
func childArgs(args []string) (own []string, isChild bool) {
	if len(args) == 5 && args[4] == supervised {
		return args[:4], true
	}
	return args, false
}

// maxTold bounds how much of a child's stderr is passed on, in bytes: the first lines of a crash.
const maxTold = 1000

// runChild runs this program again as a child, which ends when its parent does. The child reports
// its failures itself; runChild returns an error for a crash.
func runChild(args []string, xml string, stderr io.Writer) error {
	runtime.LockOSThread() // Pdeathsig applies to the thread that starts the child
	defer runtime.UnlockOSThread()
	var told bytes.Buffer
	cmd := exec.Command("/proc/self/exe", append(append([]string{}, args...), supervised)...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(xml), &told
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && exit.ExitCode() == 1 {
		_, _ = stderr.Write(told.Bytes())
		return nil
	}
	return fmt.Errorf("%w: %s", err, told.Next(maxTold))
}

// logWait bounds the wait for a system log that does not read.
const logWait = 500 * time.Millisecond

// log writes to the system log, if there is one: libvirt keeps a hook's stderr only if the hook
// fails.
func log(text string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "vmnet-hook")
		if err != nil {
			return
		}
		defer w.Close()
		_ = w.Warning(text)
	}()
	select {
	case <-done:
	case <-time.After(logWait):
	}
}
