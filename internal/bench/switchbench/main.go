// Switchbench measures our switch against others: the kernel's bridge, vde_switch, Open vSwitch,
// and a minimal switch written in C; and for guests that share their memory, Open vSwitch with DPDK
// and DPDK itself. All run at the same time, each in network namespaces of its own, and take turns
// within one run, so that other load on the machine affects them alike. The results are medians,
// and ratios of medians.
//
//	go run ./internal/bench/switchbench -quick             minutes, to the terminal
//	go run ./internal/bench/switchbench -out docs/bench    all of it, with plots
//
// With -before OLD, another build of vmnet, it measures the effect of a change in the same way.
//
// It needs root. setup.sh installs the other switches; those that are missing are reported and left
// out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// options are those of the command line.
type options struct {
	repeats int
	long    time.Duration
	peers   *regexp.Regexp
	work    *regexp.Regexp
	ports   int    // the most; 2, 8 and 64 are measured
	cpus    [2]int // of guests that share their memory, and of their switch
	vmnet   string
	out     string
	before  string
	from    string

	// While other programs keep the machine busy: how often a sample is taken at most, and how long
	// to wait before each attempt.
	tries    int
	patience time.Duration
	nice     int
}

func parse(args []string) (options, error) {
	o := options{patience: 5 * time.Second}
	f := flag.NewFlagSet("switchbench", flag.ContinueOnError)
	f.IntVar(&o.repeats, "repeats", 5, "samples of each figure")
	f.DurationVar(&o.long, "time", time.Second, "time of each sample")
	only := f.String("peers", "", "only the switches whose names match this regular expression")
	work := f.String("work", "",
		"only the workloads that match: tcp1, tcp4, udp64, trip, tap64, tap1500, tap64k, ring64, ring1500, ring64k, hop")
	cpus := f.String("cpus", "0,1", "processors of guests that share their memory, and of their switch")
	f.IntVar(&o.ports, "ports", 64, "the most ports that a switch gets")
	f.StringVar(&o.out, "out", "", "directory to write table, plots and samples into")
	f.StringVar(&o.from, "from", "", "print the samples of this file (switch.json of -out) instead of measuring")
	f.StringVar(&o.vmnet, "vmnet", "bin/vmnet", "our switch's program")
	f.StringVar(&o.before, "before", "", "another build of it to compare with")
	f.IntVar(&o.tries, "tries",
		4, "attempts to take an undisturbed sample; 1 does not wait for an idle machine either")
	f.IntVar(&o.nice, "nice", 0, "nice value of all that is measured, such as -20 where other programs run too")
	quick := f.Bool("quick", false, "short: one sample of each, half as long, and two ports")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *quick {
		o.repeats, o.long, o.ports, o.tries = 1, o.long/2, 2, 1
	}
	if o.tries == 1 {
		o.patience = 0
	}
	var err, err2 error
	o.peers, err = regexp.Compile(*only)
	o.work, err2 = regexp.Compile(*work)
	if o.repeats < 1 || o.tries < 1 || o.long < 10*time.Millisecond || f.NArg() > 0 {
		return o, errors.New("want -repeats and -tries of 1 or more, -time of 10ms or more, and no other arguments")
	}
	if n, err := fmt.Sscanf(*cpus, "%d,%d", &o.cpus[0], &o.cpus[1]); n != 2 || err != nil || o.cpus[0] == o.cpus[1] {
		return o, fmt.Errorf("-cpus %s: want the numbers of two processors, such as 0,1", *cpus)
	}
	return o, errors.Join(err, err2)
}

func main() {
	runtime.LockOSThread() // start says why
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := bench(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "switchbench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	var r *results
	if o.from != "" {
		r, err = readResults(o.from)
	} else {
		r, err = measureAll(ctx, o)
	}
	if err != nil {
		return err
	}
	if o.out != "" {
		return r.write(o.out)
	}
	return r.table(os.Stdout)
}

func readResults(file string) (*results, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &results{}
	return r, json.Unmarshal(b, r)
}
