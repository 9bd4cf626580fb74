// A short program has no use for the CPU limit of its cgroup, whose files Go's runtime would open at
// each start and keep open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program vmnet-hook is what libvirt calls as a hook for its QEMU guests: vmnet hook install puts it into
// /etc/libvirt/hooks/qemu.d. What it does is in package hook. Here is what keeps it from doing harm: it ends in
// time, tells what is wrong in one line, and never ends a guest that runs.
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
	// limit is how long the work may take; libvirt itself would wait for ever.
	limit = 10 * time.Second
	// grace is for undoing. After it the program ends, whatever it waits for.
	grace = 4 * time.Second
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // whoever reads what we say may go: that must not end us
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
	time.AfterFunc(limit+grace, func() { os.Exit(h.end(fmt.Errorf("not done after %v: given up", limit+grace))) })
	return h.end(h.call(stdin))
}

// handler is one call of the hook.
type handler struct {
	args    []string
	isChild bool
	stderr  io.Writer
}

// call does the work. Where a failure must not reach libvirt, a child does it: not even a crash is then libvirt's.
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

// mustSucceed tells whether libvirt may see a failure.
func (h *handler) mustSucceed() bool {
	return h.isChild || len(h.args) < 3 || hook.Call{Op: h.args[1], SubOp: h.args[2]}.MustSucceed()
}

// end tells an error, and is the exit status.
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

// say tells libvirt, which shows it to whoever starts the guest if we fail and else forgets it, and the system's log.
func (h *handler) say(text string) {
	text = console.Clean(strings.Join(strings.Split(strings.TrimSpace(text), "\n"), "; "))
	fmt.Fprintf(h.stderr, "vmnet-hook: %s\n", text)
	log(text)
}

// place is where a panic came from: the nearest file of ours on the stack.
func place() string {
	for l := range strings.Lines(string(debug.Stack())) {
		if l = strings.TrimSpace(l); strings.Contains(l, ".go:") && strings.Contains(l, "vmnet/") && !strings.Contains(l, "vmnet-hook/") {
			return l
		}
	}
	return "an unknown place"
}
