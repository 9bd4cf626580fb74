package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
)

func (a *app) switchListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the switches that run",
		Long:    "List the switches that run: your own, and for root those of all users. One that does not answer\nwithin a second is told with the reason. A switch that was killed leaves its socket, for the next one.",
		Example: "  vmnet switch list",
		Args:    noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		seen, err := seeSwitches(cmd.Context())
		if err != nil {
			return err
		}
		if *format == "json" {
			return a.printJSON(seen)
		}
		rows := [][]string{{"SWITCH", "STATE", "PID", "USER", "PORTS", "ADDRESSES", "UP", "SOCKET"}}
		for _, s := range seen {
			row := []string{filepath.Base(filepath.Dir(s.Socket)), s.State, "", "", "", "", "", s.Socket}
			if i := s.Info; i != nil {
				row = []string{i.Name, s.State, strconv.Itoa(i.PID), userName(i.UID), strconv.Itoa(i.Ports), strconv.Itoa(i.FDB.Entries), uptime(i.Started), s.Socket}
			}
			rows = append(rows, row)
		}
		return a.table(rows)
	})
	return cmd
}

func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return ownerText(uid)
}

func uptime(since time.Time) string { return time.Since(since).Round(time.Second).String() }

// shownSwitch is all that show tells.
type shownSwitch struct {
	control.Info
	Plugged []control.Port `json:"plugged"`
}

func (a *app) switchShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a switch and its ports",
		Example:           "  vmnet switch show sw0\n  vmnet switch show sw0 -o json",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			var s shownSwitch
			var err error
			if s.Info, err = c.Info(ctx); err != nil {
				return err
			}
			if s.Plugged, err = c.Ports(ctx); err != nil {
				return err
			}
			if *format == "json" {
				s.Plugged = append([]control.Port{}, s.Plugged...)
				return a.printJSON(s)
			}
			return a.printSwitch(s)
		})
	})
	return cmd
}

func (a *app) printSwitch(s shownSwitch) error {
	err := a.block(s.Name, []field{
		{"process", fmt.Sprintf("%d, user %s", s.PID, userName(s.UID))},
		{"version", s.Version},
		{"up", uptime(s.Started)},
		{"ageing", fmt.Sprintf("%d s", s.Ageing)},
		{"addresses", fmt.Sprintf("%d, %d moved, %d aged, %d pushed out, %d refused", s.FDB.Entries, s.FDB.Moves, s.FDB.Aged, s.FDB.Evicted, s.FDB.Refused)},
		{"ports", strconv.Itoa(len(s.Plugged))},
	})
	if err != nil || len(s.Plugged) == 0 {
		return err
	}
	rows := [][]string{{"PORT", "KIND", "DEVICE", "STATE", "MTU", "QUEUES", "SETTINGS", "RECEIVED", "SENT", "DROPPED", "HOLDER", "LABEL"}}
	for _, p := range s.Plugged {
		rows = append(rows, portRow(p))
	}
	return a.table(rows)
}

func portRow(p control.Port) []string {
	row := []string{p.Name, p.Kind, p.Device, "", "", "", portSettings(p.Config), "", "", "", "", p.Label}
	if p.Holder != 0 {
		row[10] = strconv.Itoa(p.Holder)
	}
	if st := p.Stats; st != nil {
		total := st.Total()
		row[3], row[4], row[5] = "up", strconv.Itoa(st.MTU), strconv.Itoa(len(st.Queues))
		if st.Ended != "" {
			row[3] = "ended: " + st.Ended
		}
		row[7], row[8] = strconv.FormatUint(total.RxFrames, 10), strconv.FormatUint(total.TxFrames, 10)
		row[9] = dropText(st.Drops)
	}
	return row
}

// dropText is how many frames were dropped, and why, most first.
func dropText(drops map[string]uint64) string {
	reasons := slices.SortedFunc(maps.Keys(drops), func(x, y string) int {
		if drops[x] != drops[y] {
			return int(int64(drops[y]>>1) - int64(drops[x]>>1))
		}
		return strings.Compare(x, y)
	})
	var words []string
	for _, r := range reasons {
		words = append(words, fmt.Sprintf("%d %s", drops[r], r))
	}
	return strings.Join(words, ", ")
}
