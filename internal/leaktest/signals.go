package leaktest

import (
	"os"
	"os/signal"
	"syscall"
)

// DefaultSignals has programs that the tests start take signals as usual, also where this
// process ignores some because nohup(1) or a service manager started it so: what is ignored
// is inherited over execve(2), what is handled is not. This process goes on ignoring them.
func DefaultSignals() {
	dropped := make(chan os.Signal, 1)                              // nobody reads it
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} { // the runtime handles all others
		if signal.Ignored(s) {
			signal.Notify(dropped, s)
		}
	}
}
