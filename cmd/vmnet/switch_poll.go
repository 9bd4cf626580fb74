package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
)

// Bounds of --poll. A longer time would be like polling for ever.
const (
	leastPoll = time.Microsecond
	mostPoll  = time.Second
)

// polling is how a switch looks for frames of guests that share their memory.
type polling struct {
	time time.Duration
	cpus []int
}

func (p *polling) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(nicflags.Value("TIME", "", func(s string) (err error) {
		p.time, err = time.ParseDuration(s)
		if err != nil || p.time < leastPoll || p.time > mostPoll {
			return fmt.Errorf("want a time of %v to %v with a unit, such as 50us", leastPoll, mostPoll)
		}
		return nil
	}), "poll", "how long to look for more frames of a vhost-user guest before waiting for them, which uses a CPU "+
		"meanwhile (default not at all)")
	f.Var(nicflags.Value("LIST", "", func(s string) (err error) {
		p.cpus, err = parseCPUs(s)
		return err
	}), "poll-cpus", "with --poll: look with one thread on each of these CPUs, such as 2,4-5")
	complete(cmd, "poll", cobra.NoFileCompletions)
	complete(cmd, "poll-cpus", cobra.NoFileCompletions)
}

func (p *polling) check() error {
	if p.time == 0 && len(p.cpus) > 0 {
		return usagef("--poll-cpus says where to look for frames: --poll TIME must say how long")
	}
	if len(p.cpus) == 0 {
		return nil
	}
	usable, err := vswitch.UsableCPUs()
	if err != nil {
		return err
	}
	for _, cpu := range p.cpus {
		if !slices.Contains(usable, cpu) {
			return usagef("--poll-cpus %d: the switch may not run on that CPU (those that it may use: %s)",
				cpu, numbersText(usable))
		}
	}
	return nil
}

// parseCPUs parses a list like 2,4-5.
func parseCPUs(list string) (cpus []int, err error) {
	wrong := errors.New("want numbers of CPUs, such as 2,4-5")
	for item := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || from > to {
			return nil, wrong
		}
		for n := from; n <= to; n++ {
			cpus = append(cpus, int(n))
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus), nil
}

// numbersText returns numbers as ranges: 0,2-5.
func numbersText(numbers []int) string {
	var ranges []brport.VLANRange
	for _, n := range numbers {
		ranges = append(ranges, brport.VLANRange{First: n, Last: n})
	}
	return brport.FormatVLANs(ranges)
}

// pollText describes how a switch polls.
func pollText(i control.Info) string {
	text := "no"
	if i.Poll > 0 {
		text = time.Duration(i.Poll * float64(time.Microsecond)).String()
	}
	switch len(i.PollCPUs) {
	case 0:
		return text
	case 1:
		return text + " on CPU " + numbersText(i.PollCPUs)
	}
	return text + " on CPUs " + numbersText(i.PollCPUs)
}
