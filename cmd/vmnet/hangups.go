package main

import (
	"context"
	"os"
	"sync/atomic"
	"syscall"
)

// hangUps are the SIGHUPs that a verb takes, of which each ends others.
type hangUps struct {
	taken atomic.Bool
	c     chan struct{}
	end   func() // as a signal does
}

type hangUpsKey struct{}

// takeHangUps has SIGHUP reported by the channel from now on. It no longer ends ctx, as end does.
func takeHangUps(ctx context.Context) (c <-chan struct{}, end func()) {
	h, ok := ctx.Value(hangUpsKey{}).(*hangUps)
	if !ok {
		return nil, func() {}
	}
	h.taken.Store(true)
	return h.c, h.end
}

// took reports whether the verb takes the signal.
func (h *hangUps) took(s os.Signal) bool {
	if s != syscall.SIGHUP || !h.taken.Load() {
		return false
	}
	select {
	case h.c <- struct{}{}:
	default: // one is waiting
	}
	return true
}
