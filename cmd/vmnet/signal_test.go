package main

import (
	"context"
	"fmt"
	"time"
)

// signalled is a command for scripts: it tells how untilSignal ended, and then
// undoes something that takes long.
func signalled() {
	ctx := untilSignal(context.Background())
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	time.Sleep(patience) // not a wait: what takes long
}
