package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/testpmd"
)

func TestDistanceKind(t *testing.T) {
	for d, want := range map[distance]string{
		{}: "", {90, 120}: near, {480, 500}: far, {90, 480}: mixed, {480, 90}: mixed,
	} {
		if got := d.kind(); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestCPUs(t *testing.T) {
	if o, err := parse([]string{"-cpus", "2,5"}); err != nil || o.cpus != [2]int{2, 5} {
		t.Errorf("%v, %v", o.cpus, err)
	}
	for _, bad := range []string{"", "1", "1,1", "a,b"} {
		if o, err := parse([]string{"-cpus", bad}); err == nil {
			t.Errorf("-cpus %q is %v", bad, o.cpus)
		}
	}
}

// ringExample has near figures of two backends, and far ones of one of them.
func ringExample() *results {
	r := &results{Repeats: 2, Seconds: 1, Figures: map[string][]sample{}}
	add := func(peer, work string, d distance, foreign float64, values map[string]float64) {
		key := keyOf(peer, 2, work)
		r.Figures[key] = append(r.Figures[key], sample{values, foreign, d})
	}
	for _, v := range []float64{12, 14} {
		add(ringPolls, ring64, distance{90, 100}, 0, map[string]float64{mpps: v, nsPerFrame: 150, nsBackend: 80})
	}
	add(ringPolls, ring64, distance{90, 100}, 0.5, map[string]float64{mpps: 1, nsPerFrame: 1, nsBackend: 1})
	add(ringPolls, ring64, distance{480, 470}, 0, map[string]float64{mpps: 4, nsPerFrame: 400, nsBackend: 200})
	add(ringPolls, ring64, distance{480, 90}, 0, map[string]float64{mpps: 77})
	add(ringOVS, ring64, distance{91, 90}, 0, map[string]float64{mpps: 10, nsPerFrame: 200, nsBackend: 100})
	add(ringPolls, hop, distance{91, 90}, 0.2, map[string]float64{usPerHop: 0.9})
	return r
}

// TestRingTables: samples of near and of far processors are not mixed, and those of processors that
// have moved do not count.
func TestRingTables(t *testing.T) {
	r := ringExample()
	var text strings.Builder
	if err := r.table(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| near processors | 64 bytes, Mpps |",
		"| **vmnet switch, vhost-user, --poll** | 13.0 | 1.30 | 150 (80.0) |  |  |  |  | 0.90* | 1 |\n",
		"| Open vSwitch with DPDK | 10.0 | 1.00 | 200 (100) |",
		"| far processors |",
		"| **vmnet switch, vhost-user, --poll** | 4.00 |  | 400 (200) |",
		"| 64 bytes, of Open vSwitch with DPDK | ≥ 1.20× | 1.30× | yes |\n",
		"| one frame, polling, µs | ≤ 1.00 | 0.90* | yes |\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "NaN") || strings.Contains(text.String(), "77") {
		t.Errorf("NaN, or a sample that does not count, in\n%s", &text)
	}
	frames := r.ringPlots()[0]
	if !slices.Equal(frames.series, []string{"64 bytes", "1500 bytes"}) ||
		!strings.Contains(frames.svg(), ">13.0</text>") {
		t.Errorf("the plot has %+v", frames)
	}
}

// TestWrite: each kind of results has files of its own, which another run leaves alone.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	files := func() (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".svg" {
				names = append(names, e.Name())
			}
		}
		return names
	}
	both := ringExample()
	both.Missing = []string{ringPMD + ": it is not there"}
	if err := both.write(dir); err != nil {
		t.Fatal(err)
	}
	if got := files(); !slices.Equal(got, []string{"vhost-user.json", "vhost-user.md"}) {
		t.Errorf("the files are %q", got)
	}
	if err := example().write(dir); err != nil {
		t.Fatal(err)
	}
	if got := files(); !slices.Equal(got, []string{"switch.json", "switch.md", "vhost-user.json", "vhost-user.md"}) {
		t.Errorf("the files are %q", got)
	}
	for file, has := range map[string]bool{"switch.md": false, "vhost-user.md": true} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.Contains(string(text), "it is not there") != has {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
}

// TestLiveRings measures shortly what needs no Open vSwitch, and that no frame is lost.
func TestLiveRings(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	nstest.Require(t, "cpus", runtime.NumCPU() > 1, "run it on two processors")
	testpmd.Require(t)
	runtime.LockOSThread() // start says why
	vmnet := filepath.Join(t.TempDir(), "vmnet")
	if out, err := exec.Command("go", "build", "-o", vmnet, "vmnet/cmd/vmnet").CombinedOutput(); err != nil {
		t.Fatalf("build vmnet: %v: %s", err, out)
	}
	o, err := parse([]string{
		"-quick", "-time", "100ms", "-work", "^(ring64|hop)$", "-peers", "^(kernel bridge between taps|DPDK|.*--poll)",
	})
	if err != nil {
		t.Fatal(err)
	}
	o.vmnet = vmnet
	r, err := measureAll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Figures) != 1+2*2 {
		t.Errorf("%d figures: %v", len(r.Figures), r.Figures)
	}
	for key, samples := range r.Figures {
		if samples[0].Distance.kind() == "" {
			t.Errorf("%s has no distance", key)
		}
		for name, v := range samples[0].Values {
			if v <= 0 && name != nsBackend {
				t.Errorf("%s: %s is %v", key, name, v)
			}
		}
	}
}
