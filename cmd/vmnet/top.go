package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/top"
	"vmnet/tapmgr"
)

// topVerb is the command line of top.
type topVerb struct {
	sortBy   string
	filter   string
	interval time.Duration
	count    int
}

func (a *app) topCommand() *cobra.Command {
	var o topVerb
	cmd := &cobra.Command{
		Use:   "top [FILTER]",
		Short: "Show the NICs with most traffic, drops or CPU time",
		Long: `Show what passes each NIC in a second: bits from the guest and to it, packets of both
directions, and drops with the reason of most of them, such as a queue that the guest does not read.
VHOST is how much of a processor the vhost threads of the guest's QEMU use, together for all of its
NICs. On a terminal the screen is repeated: q quits, s sorts by the next column, / filters, and the
arrow keys scroll. With -n, or if the output is no terminal, lines are printed.

FILTER selects NICs by words in their names, states and reasons.`,
		Example: `  vmnet top
  vmnet top P2
  vmnet top --sort drops -n 1
  vmnet top -n 1 -o json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.attachedGuests,
	}
	f := cmd.Flags()
	o.sortBy = top.Keys[0]
	choice(cmd, f, &o.sortBy, "sort", "", "the NICs with most of it come first", top.Keys...)
	durationFlag(f, &o.interval, "interval", 2*time.Second, 100*time.Millisecond, "time between two readings")
	f.VarP(nicflags.Value("N", "", func(s string) (err error) {
		o.count, err = nicflags.Positive(s)
		return err
	}), "count", "n", "print `N` times, and end")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.filter = strings.Join(args, " ")
		return a.withManager(func(m *tapmgr.Manager) error {
			m.Progress = nil // a note at each reading would hide the rows
			counting := m.Counting(tapmgr.Look{Drops: true})
			read := func(ctx context.Context) (top.Reading, error) {
				m.Switches = a.runningSwitches()
				return readTop(ctx, counting)
			}
			if o.count == 0 && *format == "text" && isTerminal(a.out) {
				s := &top.Screen{Read: read, Interval: o.interval, SortBy: o.sortBy, Filter: o.filter}
				return s.Run(cmd.Context())
			}
			return a.printTop(cmd.Context(), read, &o, *format == "json")
		})
	})
	return cmd
}

func readTop(ctx context.Context, counting *tapmgr.Counting) (top.Reading, error) {
	nics, err := counting.Read(ctx)
	var pids []int
	for i := range nics {
		if pid := nics[i].PID; pid != 0 && nics[i].Vhost == "on" && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return top.Reading{At: time.Now(), NICs: nics, Vhost: procview.VhostTimes(pids)}, err
}

// printTop prints tables, or arrays of JSON, until their number is reached or ctx ends.
func (a *app) printTop(ctx context.Context, read func(context.Context) (top.Reading, error), o *topVerb,
	json bool,
) error {
	old, err := read(ctx)
	for n := 0; err == nil && (o.count == 0 || n < o.count); n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.interval):
		}
		var now top.Reading
		if now, err = read(ctx); err != nil {
			break
		}
		rows := top.Filter(top.Rows(old, now), o.filter)
		top.Sort(rows, o.sortBy)
		old = now
		if json {
			err = a.printJSON(rows)
			continue
		}
		text := ""
		if n > 0 {
			text = "\n"
		}
		text += top.Header(usualWidth) + "\n"
		for _, r := range rows {
			text += r.Line(usualWidth) + "\n"
		}
		err = a.print("%s", text)
	}
	return err
}
