// Package bench compares several ways to do the same: they take turns within one run, so that
// whatever else the machine does meanwhile hits them alike. Who goes first changes from turn to
// turn, for what one leaves the kernel to do, such as to remove a tap, slows the next.
package bench

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"vmnet/internal/nstest"
)

// A Way is one of the ways that are compared.
type Way struct {
	Name string
	// Do does it for the i-th time and tells how long that took; what it needs
	// before and after is not counted.
	Do func(i int) (time.Duration, error)

	took []time.Duration
}

// Turns runs each way n times, in rounds. Each round has another order, such as A B C, B A C, C A
// B; the orders are the same in each run.
func Turns(b *testing.B, n int, ways ...*Way) {
	b.Helper()
	order := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		for _, at := range order.Perm(len(ways)) {
			w := ways[at]
			d, err := w.Do(i)
			if err != nil {
				b.Fatalf("%s, turn %d: %v", w.Name, i, err)
			}
			w.took = append(w.took, d)
		}
	}
}

// Median is the middle of all turns so far.
func (w *Way) Median() time.Duration {
	s := slices.Sorted(slices.Values(w.took))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Mean is the average of all turns so far.
func (w *Way) Mean() time.Duration {
	var sum time.Duration
	for _, d := range w.took {
		sum += d
	}
	return sum / time.Duration(len(w.took))
}

// Report prints the ways as a table, with ratios to the first one, and gives
// the medians to the benchmark's own line.
func Report(b *testing.B, ways ...*Way) {
	b.Helper()
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d turns\tmedian ms\tmean ms\tx of the first\n", len(ways[0].took))
	for _, w := range ways {
		fmt.Fprintf(t, "%s\t%.3f\t%.3f\t%.2f\n", w.Name, ms(w.Median()), ms(w.Mean()), Ratio(w, ways[0]))
		b.ReportMetric(ms(w.Median()), strings.ReplaceAll(w.Name, " ", "-")+"-ms")
	}
	_ = t.Flush()
	b.ReportMetric(0, "ns/op") // a whole table has none
	b.Logf("medians, compared in turns:\n%s", text.String())
}

// Ratio is how often b's median fits into a's.
func Ratio(a, b *Way) float64 { return float64(a.Median()) / float64(b.Median()) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Available reports whether a way has what it needs. If not, it logs the cure and the caller leaves
// the way out; where VMNET_REQUIRE demands the feature, the benchmark fails.
func Available(b *testing.B, feature string, ok bool, cure string) bool {
	b.Helper()
	c := column{TB: b}
	nstest.Require(&c, feature, ok, cure)
	return !c.out
}

// column is a TB for which to skip means to leave out one way, not the benchmark.
type column struct {
	testing.TB
	out bool
}

func (c *column) Skipf(format string, args ...any) {
	c.out = true
	c.Logf("left out: "+format, args...)
}
