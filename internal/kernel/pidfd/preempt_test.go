package pidfd

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// A process does not seem to have ended when signals arrive all the time, as the runtime's own do
// on a busy machine.
func TestAliveAmongSignals(t *testing.T) {
	h, err := Open(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	defer signal.Stop(signals)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				_ = syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			}
		}
	}()
	defer func() { close(done); <-ended }()
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		if !h.Alive() {
			t.Fatal("the parent process seems to have ended")
		}
	}
}
