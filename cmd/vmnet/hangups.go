package main

import (
	"context"
	"os"
	"sync/atomic"
	"syscall"
)

// hangUps passes SIGHUPs to a verb that takes them. The context of any other verb ends with the
// first one.
type hangUps struct {
	taken atomic.Bool
	c     chan struct{}
	end   func() // ends the verb's context, as a signal does
}

type hangUpsKey struct{}

// takeHangUps has SIGHUP reported by the channel c from now on. It no longer ends ctx; only end
// does.
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
