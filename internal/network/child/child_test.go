package child

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestProcess(t *testing.T) {
	if _, err := Start(exec.Command("/nonexistent"), nil); err == nil {
		t.Error("a program that does not exist was started")
	}
	ends, err := Start(exec.Command("sh", "-c", "echo a reason >&2; exit 3"), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(t.Context(), ends)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: a reason") {
		t.Errorf("a program that fails: %v", err)
	}
	// It ignores SIGTERM.
	stays, err := Start(exec.Command("sh", "-c", "trap '' TERM; while :; do sleep 1; done"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, stays); err != nil {
		t.Error(err)
	}
	if err := Stop(ends, stays); err != nil {
		t.Error(err)
	}
	<-stays.Done()
}

func TestTail(t *testing.T) {
	var w tail
	for range 3 {
		if n, err := w.Write([]byte(strings.Repeat("a", maxWords-1) + "b")); n != maxWords || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if s := w.String(); len(s) != maxWords || !strings.HasSuffix(s, "b") {
		t.Errorf("%d bytes are kept", len(s))
	}
}
