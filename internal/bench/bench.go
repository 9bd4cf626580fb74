// Package bench compares several ways to do the same thing. They take turns within one run, so that
// other load on the machine affects them alike. Their order changes from turn to turn: work that
// one leaves to the kernel, such as the removal of a tap, slows down the next.
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

// A Way is one of the compared ways.
type Way struct {
	Name string
	// Do does it for the i-th time and returns how long that took, without preparation and cleanup.
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

// WarmUp runs each way once, as turn i, without measuring it: the first turn reads the programs
// from disk.
func WarmUp(b *testing.B, i int, ways ...*Way) {
	b.Helper()
	for _, w := range ways {
		if _, err := w.Do(i); err != nil {
			b.Fatalf("%s: %v", w.Name, err)
		}
	}
}

// Median returns the median of all turns so far.
func (w *Way) Median() time.Duration {
	s := slices.Sorted(slices.Values(w.took))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Shortest returns the shortest turn so far.
func (w *Way) Shortest() time.Duration { return slices.Min(w.took) }

// Mean returns the mean of all turns so far.
func (w *Way) Mean() time.Duration {
	var sum time.Duration
	for _, d := range w.took {
		sum += d
	}
	return sum / time.Duration(len(w.took))
}

// Report prints a table of the ways, with ratios to the first one, and adds the medians to the
// benchmark's result line.
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

// Ratio returns a's median divided by b's.
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

// column is a TB whose Skip leaves out one way instead of the benchmark.
type column struct {
	testing.TB
	out bool
}

func (c *column) Skipf(format string, args ...any) {
	c.out = true
	c.Logf("left out: "+format, args...)
}
