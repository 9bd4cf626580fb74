package nstest

import (
	"testing"
	"time"
)

// Eventually polls after a short pause at first, for conditions that are true at once or waited for
// often, and after pollEvery in the end.
const (
	firstPoll = 20 * time.Microsecond
	pollEvery = 5 * time.Millisecond
)

// Eventually polls ok until it returns true, and fails the test with what if that takes longer than
// within. Choose within for a loaded machine: it costs nothing if the condition holds soon.
func Eventually(tb testing.TB, within time.Duration, what string, ok func() bool) {
	tb.Helper()
	end := time.Now().Add(within)
	for pause := firstPoll; !ok(); pause = min(2*pause, pollEvery) {
		if time.Now().After(end) {
			tb.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(pause)
	}
}
