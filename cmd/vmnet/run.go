package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// run is the whole program; the result is its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{out: stdout, err: stderr, args: args, journal: isJournal(stderr), json: asksJSON(args), colours: hasColours(stdout)}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	a.shells(root)
	if completes(args) {
		plainUsages(root)
	}
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

var errInterrupted = errors.New("interrupted")

// untilSignal ends the context at the first signal that asks us to, so that what
// was begun is undone. The second one has its usual effect: we end at once.
func untilSignal(parent context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as nohup(1) has it
			signal.Notify(signals, s)
		}
	}
	go func() {
		<-signals
		signal.Stop(signals)
		cancel(errInterrupted)
	}()
	return ctx
}
