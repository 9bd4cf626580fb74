package nstest

import (
	"testing"
	"time"
)

// pollEvery is the pause between two looks of Eventually.
const pollEvery = 5 * time.Millisecond

// Eventually polls ok until it returns true, and fails the test with what if
// that takes longer than within. Choose within for a loaded machine: it costs
// nothing where the condition holds soon.
func Eventually(tb testing.TB, within time.Duration, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(pollEvery) {
		if time.Now().After(end) {
			tb.Fatalf("not within %v: %s", within, what)
		}
	}
}
