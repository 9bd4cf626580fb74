package main

import (
	"context"
	"fmt"
	"time"
)

// signalled is a command for scripts: it prints how untilSignal ended, and then runs a slow undo.
func signalled() {
	ctx := untilSignal(context.Background())
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	time.Sleep(patience) // not a wait: the slow undo
}
