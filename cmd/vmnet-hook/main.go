// A short-lived program does not need the CPU limit of its cgroup. Go's runtime would open the
// cgroup's files at each start and keep them open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program vmnet-hook is libvirt's hook for QEMU guests: vmnet hook install puts it into
// /etc/libvirt/hooks/qemu.d. Package hook does the work. This program makes it safe to call: it
// ends in time, reports a failure in one line, and never ends a running guest.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
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
		notes, err := c.Run(ctx, m)
		for _, note := range notes {
			h.say("note: " + note)
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
		if l = strings.TrimSpace(l); strings.Contains(l, ".go:") && strings.Contains(l, "vmnet/") && !strings.Contains(l, "vmnet-hook/") {
			return l
		}
	}
	return "an unknown place"
}
