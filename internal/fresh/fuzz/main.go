// Program fuzz runs the fuzz tests of a module, which it finds by itself: each FuzzX for some time,
// and several at once. With -most, it runs those whose last turn is longest ago, so that a few of
// them in each run reach all in turn.
//
// Go's build cache keeps what each has learned, and when its turn was. If an input fails, fuzz
// prints the file that Go has written for it, which belongs into testdata/fuzz.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	var r run
	most := flag.Int("most", 0, "run at most `N` of them, those whose turn it is; 0 for all")
	flag.DurationVar(&r.each, "time", 20*time.Second, "run each of them for this `TIME`")
	flag.Parse()
	if flag.NArg() > 0 || *most < 0 || r.each <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r.out = os.Stdout
	if err := r.module(ctx, ".", *most); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

// run is one run of the program.
type run struct {
	each time.Duration
	mu   sync.Mutex // of out
	out  io.Writer
}

// module runs the fuzz tests of the module in a directory.
func (r *run) module(ctx context.Context, dir string, most int) error {
	targets, err := find(dir)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("there is no function FuzzX in a file that ends in _test.go")
	}
	turns, err := turnsOf(ctx, dir)
	if err != nil {
		return err
	}
	chosen := turns.next(targets, most)
	fmt.Fprintf(r.out, "%d of %d fuzz tests, each for %v\n", len(chosen), len(targets), r.each)
	work := make(chan target, len(chosen))
	for _, t := range chosen {
		work <- t
	}
	close(work)
	var all sync.WaitGroup
	var mu sync.Mutex
	for range runtime.NumCPU() {
		all.Go(func() {
			for t := range work {
				errOne := r.one(ctx, dir, t)
				if errOne == nil {
					errOne = turns.had(t, time.Now())
				}
				mu.Lock()
				err = errors.Join(err, errOne)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return err
}

// turnsOf returns where the turns of a module's fuzz tests are, beside what Go keeps for them.
func turnsOf(ctx context.Context, dir string) (turns, error) {
	script := exec.CommandContext(ctx, "sh", "-c", "go env GOCACHE && go list -m")
	script.Dir = dir
	out, err := script.Output()
	cache, module, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || cache == "" || module == "" {
		return "", fmt.Errorf("go env GOCACHE and go list -m: %w, %q", err, out)
	}
	return turns(filepath.Join(cache, "fuzz", module, "turns")), nil
}

// one runs a fuzz test on one processor.
func (r *run) one(ctx context.Context, dir string, t target) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-run=^$", "-fuzz=^"+t.name+"$", "-parallel=1",
		"-fuzztime="+r.each.String(), "-fuzzminimizetime=100x", "./"+t.dir)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		fmt.Fprintf(r.out, "ok   %s %s: %s\n", t.dir, t.name, last(said.String()))
		return nil
	}
	fmt.Fprintf(r.out, "FAIL %s %s\n%s", t.dir, t.name, said.Bytes())
	for _, path := range written(said.String()) {
		text, errRead := os.ReadFile(filepath.Join(dir, t.dir, path))
		fmt.Fprintf(r.out, "-- %s --\n%s", filepath.Join(t.dir, path), text)
		err = errors.Join(err, errRead)
	}
	return fmt.Errorf("%s %s: %w", t.dir, t.name, err)
}

// last returns the last line in which Go says how many inputs it has tried.
func last(said string) (line string) {
	for l := range strings.Lines(said) {
		if strings.HasPrefix(l, "fuzz: elapsed: ") {
			line = strings.TrimSpace(strings.TrimPrefix(l, "fuzz: "))
		}
	}
	return line
}

// written returns the files of inputs that fail.
func written(said string) (paths []string) {
	for l := range strings.Lines(said) {
		if _, path, ok := strings.Cut(l, "Failing input written to "); ok {
			paths = append(paths, strings.TrimSpace(path))
		}
	}
	return paths
}
