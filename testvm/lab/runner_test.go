package lab_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// packageLimit bounds the tests of one package. A guest takes over a minute to boot in a lab host,
// and longer under load.
const packageLimit = 25 * time.Minute

// hosts is the number of lab hosts, each for one package at a time and with one processor. More
// than this machine has processors would wait for each other.
const hosts = 2

// allPackages begins with those that take longest, so that no host waits for another one at the
// end.
const allPackages = "./tapmgr ./cmd/qemu-netup-full ./testvm/lab ./bridge/vswitch ./internal/network ./..."

// TestLabHost runs the tests TestLab* of all packages in lab hosts, as subtests. A test that skips
// there fails here. The environment selects tests: VMNET_LAB_PKG has patterns of packages and
// VMNET_LAB_RUN a pattern of tests, as for go test; VMNET_LAB_RACE builds them with the race
// detector, which makes them several times slower on an emulated processor.
func TestLabHost(t *testing.T) {
	lab.Require(t)
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-10*time.Second))
		defer cancel()
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := labPackages(ctx, root,
		strings.Fields(cmp.Or(os.Getenv("VMNET_LAB_PKG"), allPackages))...)
	if err != nil {
		t.Fatal(err)
	}
	testvm.StartT(t, testvm.Config{Icount: true}).Stop() // the lab hosts see its state: guests there need not boot
	programs := compileAll(ctx, t, packages)
	var running sync.WaitGroup
	for range min(hosts, len(packages)) {
		running.Go(func() {
			h, err := lab.Start(ctx, lab.Config{CPUs: 1, Logf: t.Logf})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() {
				if t.Failed() {
					t.Logf("the lab host's console:\n%s", h.Console())
				}
				h.Stop()
			}()
			for p := range programs {
				t.Run(p.Path, func(t *testing.T) { runPackage(ctx, t, h, p) })
			}
		})
	}
	running.Wait()
}

func runPackage(ctx context.Context, t *testing.T, h *lab.Host, p program) {
	if p.err != nil {
		t.Fatal(p.err)
	}
	ran, err := runTests(ctx, t, h, p)
	if err != nil {
		t.Error(err)
	}
	if ran == 0 {
		t.Error("no test ran")
	}
}

// program is a package's test program.
type program struct {
	pkg
	file string
	err  error
}

// compileAll compiles one package after the other, while others already run.
func compileAll(ctx context.Context, t *testing.T, packages []pkg) <-chan program {
	t.Helper()
	cache, err := testvm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "lab-") // in a directory that a lab host sees
	if err != nil {
		t.Fatal(err)
	}
	programs := make(chan program, len(packages))
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		_ = os.RemoveAll(dir)
	})
	go func() {
		defer close(done)
		defer close(programs)
		for _, p := range packages {
			file, err := compile(ctx, p, dir)
			programs <- program{p, file, err}
		}
	}()
	return programs
}

// runTests runs a package's tests and returns how many have ended.
func runTests(ctx context.Context, t *testing.T, h *lab.Host, p program) (ran int, err error) {
	limit := packageLimit
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()
	events, output := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		status, err := convert(ctx, output, func(stdin io.Writer) (int, error) {
			return h.Run(ctx, lab.Command{
				Argv: []string{
					p.file, "-test.v=test2json", "-test.run=" + cmp.Or(os.Getenv("VMNET_LAB_RUN"), "^TestLab"),
					"-test.skip=^" + runner + "$",
					fmt.Sprintf("-test.timeout=%s", (limit - limit/10).Round(time.Second)),
				},
				Dir: p.Dir, Env: append(os.Environ(), "VMNET_REQUIRE=all", "VMNET_PATIENCE=20"),
				Stdout: stdin, Stderr: stdin,
			})
		})
		if err == nil && status != 0 {
			err = fmt.Errorf("%s ended with status %d", p.Path, status)
		}
		_ = output.Close()
		ended <- err
	}()
	rest, err := readEvents(events, func(r result) {
		ran++
		t.Run(r.name, func(t *testing.T) {
			t.Log("\n" + r.output)
			if r.bad != "" {
				t.Error("in the lab host: " + r.bad)
			}
		})
	})
	if rest != "" {
		t.Logf("output of no test that has ended:\n%s", rest)
	}
	_ = events.Close()
	return ran, errors.Join(err, <-ended)
}

// convert turns the output of run into test events.
func convert(ctx context.Context, events io.Writer, run func(io.Writer) (int, error)) (int, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdout, cmd.Stderr = events, events
	cmd.WaitDelay = 5 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	status, err := run(stdin)
	_ = stdin.Close()
	return status, errors.Join(err, cmd.Wait())
}
