package nstest

import (
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Eventually polls after a short pause at first, for conditions that are true at once or waited for
// often, and after pollEvery in the end.
const (
	firstPoll = 20 * time.Microsecond
	pollEvery = 5 * time.Millisecond
)

// patience is the environment variable that multiplies what a wait may take: a whole number. It is
// for machines that are slow, such as lab hosts, where an emulated machine emulates a guest.
const patience = "VMNET_PATIENCE"

var factor = sync.OnceValue(func() time.Duration {
	n, err := strconv.Atoi(os.Getenv(patience))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
})

// Patience returns the bound of a wait that usually ends within d.
func Patience(d time.Duration) time.Duration { return d * factor() }

// Eventually polls ok until it returns true, and fails the test with what if that takes longer than
// Patience of within. Choose within for a loaded machine: it costs nothing if the condition holds
// soon.
func Eventually(tb testing.TB, within time.Duration, what string, ok func() bool) {
	tb.Helper()
	within = Patience(within)
	end := time.Now().Add(within)
	for pause := firstPoll; !ok(); pause = min(2*pause, pollEvery) {
		if time.Now().After(end) {
			tb.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(pause)
	}
}
