package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{5, 1, 3}, 3}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.of, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("of nothing: %v", got)
	}
}

func TestQuantile(t *testing.T) {
	trips := make([]uint64, tripBuckets)
	trips[10], trips[20], trips[40] = 50, 49, 1
	for share, want := range map[float64]float64{
		0.5: 10.5 * tripBucket, 0.99: 20.5 * tripBucket,
		1: 40.5 * tripBucket,
	} {
		if got := quantile(trips, share); got != want {
			t.Errorf("%v within %v µs, want %v", share, got, want)
		}
	}
	trips[tripBuckets-1] = 1000
	if got := quantile(trips, 0.99); got != (tripBuckets-0.5)*tripBucket {
		t.Errorf("beyond the last bucket: %v", got)
	}
}

func TestParseIdle(t *testing.T) {
	got, err := parseIdle("cpu  100 2 30 4000 500 0 9 10 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
	if err != nil || got != 45 {
		t.Errorf("idle for %v s, %v; want 45", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6", "cpu 1 2 3 4 -5 6"} {
		if got, err := parseIdle(bad); err == nil {
			t.Errorf("parseIdle(%q) = %v", bad, got)
		}
	}
}

func TestSpent(t *testing.T) {
	start := time.Now()
	a := load{at: start, idle: 10, own: 5, peer: 2}
	b := load{at: start.Add(2 * time.Second), idle: 11, own: 7.4, peer: 3}
	got := b.since(a, 2) // of 4 s one was idle, 2.4 were ours
	if math.Abs(got.busy-3) > 1e-9 || got.peer != 1 || math.Abs(got.foreign-0.15) > 1e-9 {
		t.Errorf("%+v", got)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-quick"})
	if err != nil || o.repeats != 1 || o.long != time.Second/2 || o.ports != 2 || o.tries != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-repeats", "0"}, {"-time", "1ms"}, {"-peers", "("}, {"more"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// example has figures for two switches, one of them disturbed.
func example() *results {
	r := &results{
		Repeats: 3, Seconds: 1, Missing: []string{"vde_switch, tap: not <found>"},
		Figures: map[string][]sample{},
	}
	for i, v := range []float64{9, 12, 10} {
		r.Figures[keyOf(bridgeName, 2, tcp1)] = append(r.Figures[keyOf(bridgeName, 2, tcp1)],
			sample{Values: map[string]float64{gbps: v, secPerGB: 1}, Foreign: 0.01})
		r.Figures[keyOf(oursName, 2, tcp1)] = append(r.Figures[keyOf(oursName, 2, tcp1)],
			sample{Values: map[string]float64{gbps: v * 0.8, secPerGB: 2}, Foreign: 0.1 + float64(i)})
	}
	// One that does not count.
	r.Figures[keyOf(bridgeName, 2, tcp1)] = append(r.Figures[keyOf(bridgeName, 2, tcp1)],
		sample{Values: map[string]float64{gbps: 1, secPerGB: 9}, Foreign: 0.5})
	return r
}

func TestGoals(t *testing.T) {
	r := example()
	for _, g := range goals() {
		v, ok := r.reached(g)
		switch g.text {
		case "TCP, 1 stream, of the kernel bridge":
			if math.Abs(v-0.8) > 1e-9 || !ok {
				t.Errorf("%s: %v, %v", g.text, v, ok)
			}
		case "CPU s/GB, 1 stream, of the kernel bridge":
			if v != 2 || ok {
				t.Errorf("%s: %v, %v", g.text, v, ok)
			}
		default:
			if !math.IsNaN(v) || ok {
				t.Errorf("%s was not measured, and is %v, %v", g.text, v, ok)
			}
		}
		for _, f := range []ref{g.a, g.b} {
			known := peerNamed(f.peer) != nil && workloadNamed(f.work) != nil ||
				ringPeerNamed(f.peer) != nil && ringWorkNamed(f.work) != nil ||
				slices.ContainsFunc(tapPairs(), func(p *tapPair) bool { return p.name == f.peer }) &&
					slices.ContainsFunc(tapSizes, func(s tapSize) bool { return s.work == f.work })
			if f.peer != "" && !known {
				t.Errorf("%s: no such figure: %+v", g.text, f)
			}
		}
	}
}

func TestTable(t *testing.T) {
	var text strings.Builder
	if err := example().table(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"**Not measured**: vde_switch, tap: not <found>\n",
		"| kernel bridge, veth | 10.0 | 1.00 | 1.00 |",
		"| **vmnet switch, tap** | 8.00* | 0.80 | 2.00* |",
		"| TCP, 1 stream, of the kernel bridge | ≥ 0.75× | 0.80×* | yes |\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "of before") {
		t.Errorf("there was no other build, and\n%s", &text)
	}
	if strings.Contains(text.String(), "NaN") {
		t.Errorf("NaN in\n%s", &text)
	}
}

func TestPlotsAreWellFormed(t *testing.T) {
	for _, p := range example().plots() {
		d := xml.NewDecoder(strings.NewReader(p.svg()))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", p.file, err, p.svg())
			}
		}
	}
	text := example().plots()[0].svg()
	for _, want := range []string{">10.0</text>", ">8.00</text>", ">" + oursName + "</text>", `width="440.0"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, ">"+vdeName+"<") {
		t.Errorf("a switch without figures is in\n%s", text)
	}
}

// TestLiveMeasures lets two switches take short turns. On a busy machine a short turn may see no
// frame: then the turns are longer.
func TestLiveMeasures(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	runtime.LockOSThread() // start says why
	vmnet := filepath.Join(t.TempDir(), "vmnet")
	if out, err := exec.Command("go", "build", "-o", vmnet, "vmnet/cmd/vmnet").CombinedOutput(); err != nil {
		t.Fatalf("build vmnet: %v: %s", err, out)
	}
	var r *results
	var empty []string
	for _, long := range []string{"100ms", "1s", "10s"} {
		o, err := parse([]string{
			"-quick", "-time", long, "-peers",
			"^(C reference|vmnet switch, guest by (tap|socket))$",
		})
		if err != nil {
			t.Fatal(err)
		}
		o.vmnet = vmnet
		if r, err = measureAll(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if empty = emptyFigures(r); len(empty) == 0 {
			break
		}
	}
	if len(empty) > 0 {
		t.Errorf("nothing was measured: %s", empty)
	}
	if len(r.Figures) != 3*len(workloads()) {
		t.Errorf("%d figures: %v", len(r.Figures), r.Figures)
	}
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	again, err := readResults(filepath.Join(dir, "switch.json"))
	if err != nil || len(again.Figures) != len(r.Figures) {
		t.Errorf("read back: %+v, %v", again, err)
	}
}

// emptyFigures names those that are not positive, although they should be.
func emptyFigures(r *results) []string {
	var names []string
	for key, samples := range r.Figures {
		for name, v := range samples[0].Values {
			if v <= 0 && name != loss {
				names = append(names, fmt.Sprintf("%s: %s is %v", key, name, v))
			}
		}
	}
	return names
}
