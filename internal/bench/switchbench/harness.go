package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/testpmd"
	"vmnet/testvm"
)

//go:embed c/traffic.c
var trafficSource []byte

//go:embed c/reference.c
var referenceSource []byte

//go:embed c/taps.c
var tapsSource []byte

// A harness holds all switches and the programs that measure them.
type harness struct {
	tools  tools
	lans   []*lan
	rings  []*ring
	kernel []int // threads, see kernelThreads
	cpus   int
	port   int // of the last workload
}

// cCompiler builds with the flags of a Debian package.
var cCompiler = []string{"cc", "-O2", "-Wall", "-pthread"}

func newHarness(o options) (*harness, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("measuring takes namespaces and taps: run it as root")
	}
	// Programs inherit the nice value of this thread, which starts them all.
	if o.nice != 0 {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, o.nice); err != nil {
			return nil, fmt.Errorf("-nice %d: %w", o.nice, err)
		}
	}
	dir, err := os.MkdirTemp("", "switchbench-")
	if err != nil {
		return nil, err
	}
	h := &harness{
		tools: tools{dir: dir, vmnet: o.vmnet, before: o.before}, kernel: kernelThreads(),
		cpus: runtime.NumCPU(),
	}
	if err := h.build(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return h, nil
}

func (h *harness) build() error {
	t := &h.tools
	t.traffic, t.reference = filepath.Join(t.dir, "traffic"), filepath.Join(t.dir, "reference")
	t.taps = filepath.Join(t.dir, "taps")
	for program, source := range map[string][]byte{
		t.traffic: trafficSource, t.reference: referenceSource, t.taps: tapsSource,
	} {
		if err := os.WriteFile(program+".c", source, 0o600); err != nil {
			return err
		}
		cc := exec.Command(cCompiler[0], append(cCompiler[1:], "-o", program, program+".c")...)
		if out, err := cc.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s (make bench-setup installs a compiler)",
				filepath.Base(program), err, out)
		}
	}
	cache, err := testvm.CacheDir()
	if err != nil {
		return err
	}
	t.ovs, t.ovsDPDK = filepath.Join(cache, "openvswitch"), filepath.Join(cache, "openvswitch-dpdk")
	return nil
}

func (h *harness) close() {
	for _, r := range h.rings {
		r.close()
	}
	for _, l := range h.lans {
		l.close()
	}
	_ = os.RemoveAll(h.tools.dir)
}

// manyPorts are the switches that are measured with more than two ports, and their workloads.
var (
	manyPorts     = []string{bridgeName, vdeName, superName, oursName}
	manyWorkloads = []string{tcp1, small}
	portCounts    = []int{2, 8, 64}
)

// A series is one workload on one switch. Each turn takes a sample of it.
type series struct {
	key     string
	measure func(long time.Duration) (sample, error)
}

// plan starts all switches, and returns the series to measure.
func (h *harness) plan(o options, r *results) ([]series, error) {
	var all []series
	candidates := peers()
	if o.before != "" {
		candidates = append(candidates, before()...)
	}
	for _, p := range candidates {
		if !o.peers.MatchString(p.name) {
			continue
		}
		if why := p.missing(&h.tools); why != "" {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: %s", p.name, why))
			continue
		}
		for _, n := range portCounts {
			works := h.works(o, p, n)
			if len(works) == 0 {
				continue
			}
			l, err := newLAN(p, n, &h.tools)
			if err != nil {
				return nil, err
			}
			h.lans = append(h.lans, l)
			for _, w := range works {
				all = append(all, series{keyOf(p.name, n, w.name), func(long time.Duration) (sample, error) {
					return h.measure(l, w, long)
				}})
			}
		}
	}
	all = append(all, h.pairSeries(o)...)
	rings, err := h.ringSeries(o, r)
	if all = append(all, rings...); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("nothing is left to measure")
	}
	return all, nil
}

// works returns the workloads of a switch with that many ports.
func (h *harness) works(o options, p *peer, ports int) (works []*workload) {
	for _, w := range workloads() {
		many := slices.Contains(manyPorts, p.name) && slices.Contains(manyWorkloads, w.name) && ports <= o.ports
		if o.work.MatchString(w.name) && (ports == 2 || many) {
			works = append(works, w)
		}
	}
	return works
}

// quietly takes a sample while nothing else runs, or returns the least disturbed of several.
func (h *harness) quietly(ctx context.Context, s series, o options) (best sample, err error) {
	for i := range o.tries {
		if err := h.waitForQuiet(ctx, o.patience); err != nil {
			return best, err
		}
		got, err := s.measure(o.long)
		if err != nil {
			return got, err
		}
		if i == 0 || got.Foreign < best.Foreign {
			best = got
		}
		if best.Foreign <= disturbing || ctx.Err() != nil {
			break
		}
	}
	return best, ctx.Err()
}

// waitForQuiet waits until the processors are idle, for a limited time.
func (h *harness) waitForQuiet(ctx context.Context, patience time.Duration) error {
	for end := time.Now().Add(patience); ctx.Err() == nil && time.Now().Before(end); {
		before, err := loadNow(nil, nil, nil)
		if err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
		after, err := loadNow(nil, nil, nil)
		if err != nil || after.since(before, h.cpus).foreign <= disturbing {
			return err
		}
	}
	return ctx.Err()
}

func measureAll(ctx context.Context, o options) (*results, error) {
	h, err := newHarness(o)
	if err != nil {
		return nil, err
	}
	defer h.close()
	r := &results{
		Date: time.Now().UTC().Format(time.DateOnly), Repeats: o.repeats, Seconds: o.long.Seconds(),
		Machine: machine(), Versions: h.tools.versions(), Figures: map[string][]sample{},
	}
	all, err := h.plan(o, r)
	if err != nil {
		return nil, err
	}
	order := rand.New(rand.NewPCG(1, 1)) // the same in each run
	for turn := range o.repeats {
		fmt.Fprintf(os.Stderr, "turn %d of %d: %d samples\n", turn+1, o.repeats, len(all))
		for _, at := range order.Perm(len(all)) {
			s := all[at]
			got, err := h.quietly(ctx, s, o)
			if err != nil {
				return nil, err
			}
			r.Figures[s.key] = append(r.Figures[s.key], got)
		}
	}
	return r, nil
}

// versions returns the versions of all programs that have one.
func (t *tools) versions() (all []string) {
	for _, argv := range [][]string{
		{"cc", "--version"},
		{"vde_switch", "--version"},
		{t.vswitchd(), "--version"},
		{t.vmnet, "version"},
	} {
		if v := version(argv...); v != "" {
			all = append(all, strings.TrimSuffix(v, "."))
		}
	}
	if v, err := testpmd.Version(); err == nil {
		all = append(all, "DPDK "+v)
	}
	return all
}
