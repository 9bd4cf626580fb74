package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/cli/nicflags"
)

// statsVerb is the command line of switch stats.
type statsVerb struct {
	name     string
	port     string
	interval time.Duration
	count    int
	json     bool
}

func (a *app) switchStatsCommand() *cobra.Command {
	var o statsVerb
	cmd := &cobra.Command{
		Use:   "stats NAME",
		Short: "Show the counters of a switch's ports",
		Long: `Show the counters of each port of a switch and of each queue, and the drop reasons.
With --interval, show rates repeatedly, until Ctrl-C. A super-frame counts as one frame.`,
		Example:           "  vmnet switch stats sw0 --port tap0\n  vmnet switch stats sw0 --interval 2s",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	f := cmd.Flags()
	f.StringVar(&o.port, "port", "", "only this `PORT` (default all)")
	durationFlag(f, &o.interval, "interval", 0, 100*time.Millisecond, "show rates over this time, repeated")
	f.Lookup("interval").DefValue = ""
	nicflags.Number(f, &o.count, "count", "N", "with --interval: end after N times (default never)")
	complete(cmd, "port", switchPorts)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.name, o.json = args[0], *format == "json"
		if o.count < 0 || o.count > 0 && o.interval == 0 {
			return usagef("--count %d goes with --interval, and is not negative", o.count)
		}
		if o.interval > 0 {
			return a.watchStats(cmd.Context(), &o)
		}
		return a.showStats(cmd.Context(), &o)
	})
	return cmd
}

// stats returns the counters of the ports at one time.
func (o *statsVerb) stats(ctx context.Context) (all []vport.Stats, err error) {
	err = withSwitch(ctx, o.name, func(ctx context.Context, c *control.Client) error {
		ports, err := c.Ports(ctx)
		for _, p := range ports {
			if p.Stats != nil && (o.port == "" || o.port == p.Name) {
				all = append(all, *p.Stats)
			}
		}
		if err == nil && o.port != "" && len(all) == 0 {
			err = fmt.Errorf("switch %s has no port %s", o.name, o.port)
		}
		return err
	})
	return all, err
}

// countedPort is the JSON object of stats for a port.
type countedPort struct {
	vport.Stats
	Cures map[string]string `json:"cures,omitempty"` // cures, by the reasons in Drops
}

func (a *app) showStats(ctx context.Context, o *statsVerb) error {
	all, err := o.stats(ctx)
	if err != nil {
		return err
	}
	if o.json {
		counted := make([]countedPort, len(all))
		for i, st := range all {
			counted[i] = countedPort{st, vswitch.Cures(st.Drops)}
		}
		return a.printJSON(counted)
	}
	for _, st := range all {
		fields := []field{{"kind", st.Kind}, {"MTU", fmt.Sprintf("%d bytes", st.MTU)}}
		fields = append(fields, field{"state", portState(&st)})
		if st.Loops > 0 {
			fields = append(fields, field{"loops", strconv.FormatUint(st.Loops, 10)})
		}
		for i, q := range st.Queues {
			fields = append(fields,
				field{fmt.Sprintf("queue %d in", i), framesText(q.RxFrames, q.RxBytes)},
				field{fmt.Sprintf("queue %d out", i), framesText(q.TxFrames, q.TxBytes)})
		}
		fields = append(fields, field{"dropped", orNone(dropText(st.Drops))})
		cures := vswitch.Cures(st.Drops)
		for _, why := range slices.Sorted(maps.Keys(cures)) {
			fields = append(fields, field{"cure", why + ": " + cures[why]})
		}
		if err := a.block(st.Name, fields); err != nil {
			return err
		}
	}
	return nil
}

func framesText(frames, bytes uint64) string {
	return fmt.Sprintf("%s, %d bytes", count(int(frames), "frame"), bytes)
}

// A rate is the traffic of a port per second.
type rate struct {
	Name     string  `json:"name"`
	RxFrames float64 `json:"rx_frames"`
	RxBits   float64 `json:"rx_bits"`
	TxFrames float64 `json:"tx_frames"`
	TxBits   float64 `json:"tx_bits"`
	Drops    float64 `json:"drops"`
}

func (a *app) watchStats(ctx context.Context, o *statsVerb) error {
	before, err := o.stats(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	at := time.Now()
	for n := 0; o.count == 0 || n < o.count; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := o.stats(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = a.printRates(ratesOf(before, now, time.Since(at).Seconds()), o.json)
		}
		if err != nil {
			return err
		}
		before, at = now, time.Now()
	}
	return nil
}

// ratesOf returns the rates between two readings. A port that is new, or was removed and added
// again, counts from 0.
func ratesOf(before, now []vport.Stats, seconds float64) []rate {
	old := map[string]vport.Stats{}
	for _, st := range before {
		old[st.Name] = st
	}
	var all []rate
	for _, st := range now {
		was, is := old[st.Name], st.Total()
		each := func(now, before uint64) float64 {
			if now < before {
				before = 0
			}
			return float64(now-before) / seconds
		}
		then := was.Total()
		all = append(all, rate{
			Name: st.Name, RxFrames: each(is.RxFrames, then.RxFrames), RxBits: 8 * each(is.RxBytes, then.RxBytes),
			TxFrames: each(is.TxFrames, then.TxFrames), TxBits: 8 * each(is.TxBytes, then.TxBytes),
			Drops: each(sum(st.Drops), sum(was.Drops)),
		})
	}
	return all
}

func sum(drops map[string]uint64) (n uint64) {
	for _, d := range drops {
		n += d
	}
	return n
}

func (a *app) printRates(all []rate, asJSON bool) error {
	if asJSON {
		b, err := json.Marshal(append([]rate{}, all...))
		if err != nil {
			return err
		}
		return a.print("%s\n", b)
	}
	rows := [][]string{{"PORT", "IN/s", "IN Mbit/s", "OUT/s", "OUT Mbit/s", "DROPPED/s"}}
	for _, r := range all {
		rows = append(rows, []string{
			r.Name, fmt.Sprintf("%.0f", r.RxFrames), fmt.Sprintf("%.1f", r.RxBits/1e6),
			fmt.Sprintf("%.0f", r.TxFrames), fmt.Sprintf("%.1f", r.TxBits/1e6), fmt.Sprintf("%.0f", r.Drops),
		})
	}
	return a.table(rows, nil)
}
