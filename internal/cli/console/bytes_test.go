package console_test

import (
	"math"
	"testing"

	"vmnet/internal/cli/console"
)

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "0.98K", 1024: "1.00K", 10 << 10: "10.0K", 1023 << 10: "1.00M", 5 << 30: "5.00G",
		math.MaxUint64: "16.0E",
	} {
		if got := console.Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
