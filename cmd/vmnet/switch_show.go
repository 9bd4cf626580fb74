package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

func (a *app) switchListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the running switches",
		Long:    "List the running switches: your own, and for root those of all users. A switch that does not answer\nwithin a second is listed with the reason. A killed switch leaves its socket, which the next one replaces.",
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
		rows := [][]string{{"SWITCH", "STATE", "PID", "USER", "PORTS", "DOWN", "ADDRESSES", "UP", "SOCKET"}}
		for _, s := range seen {
			row := []string{filepath.Base(filepath.Dir(s.Socket)), s.State, "", "", "", "", "", "", s.Socket}
			if i := s.Info; i != nil {
				row = []string{
					i.Name, s.State, strconv.Itoa(i.PID), userName(i.UID), strconv.Itoa(i.Ports),
					strconv.Itoa(i.Down), strconv.Itoa(i.FDB.Entries), uptime(i.Started), s.Socket,
				}
			}
			rows = append(rows, row)
		}
		return a.table(rows, nil)
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

// shownSwitch is the JSON object of show.
type shownSwitch struct {
	control.Info
	Plugged []control.Port `json:"plugged"`
	Alone   []string       `json:"alone,omitempty"` // ports that can reach no other port

	// Cures has the cures for frames that ports have dropped, by drop reason.
	Cures map[string]string `json:"cures,omitempty"`
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
			s.Alone = alone(s.Plugged, s.VLANFiltering)
			s.Cures = curesOf(s.Plugged)
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
		{
			"addresses",
			fmt.Sprintf("%d, %d moved, %d aged, %d pushed out, %d refused", s.FDB.Entries, s.FDB.Moves, s.FDB.Aged,
				s.FDB.Evicted, s.FDB.Refused),
		},
		{"VLANs", vlansText(s.VLANFiltering)},
		{"sandbox", cmp.Or(strings.Join(s.Sandbox, ", "), "off")},
		{"polls", pollText(s.Info)},
		{"fast path", fastPathText(s)},
		{"ports", strconv.Itoa(len(s.Plugged))},
	})
	if err != nil || len(s.Plugged) == 0 {
		return err
	}
	rows := [][]string{{
		"PORT", "KIND", "DEVICE", "STATE", "MTU", "QUEUES", "SETTINGS", "RECEIVED", "SENT",
		"DROPPED", "HOLDER", "LABEL",
	}}
	for _, p := range s.Plugged {
		rows = append(rows, portRow(p))
	}
	if err := a.table(rows, nil); err != nil {
		return err
	}
	a.tellAlone(s.Plugged, s.VLANFiltering)
	a.tellCures(s)
	a.tellSlow(s)
	return nil
}

// curesOf returns the cures for the frames that any of the ports has dropped, by drop reason.
func curesOf(ports []control.Port) map[string]string {
	drops := map[string]uint64{}
	for _, p := range ports {
		if p.Stats != nil {
			maps.Copy(drops, p.Stats.Drops)
		}
	}
	return vswitch.Cures(drops)
}

// tellCures prints a note for each drop reason that has a cure, with the ports that have dropped
// frames.
func (a *app) tellCures(s shownSwitch) {
	for _, why := range slices.Sorted(maps.Keys(s.Cures)) {
		var names []string
		for _, p := range s.Plugged {
			if p.Stats != nil && p.Stats.Drops[why] > 0 {
				names = append(names, p.Name)
			}
		}
		a.note(fmt.Sprintf("dropped at %s, %s: %s", namesText(names), why, s.Cures[why]))
	}
}

func vlansText(filters bool) string {
	if filters {
		return "separated"
	}
	return "not separated: tags pass unchanged"
}

// alone returns the names of the ports that can reach no other port.
func alone(ports []control.Port, filters bool) (names []string) {
	configs := make([]vport.Config, len(ports))
	for i, p := range ports {
		configs[i] = p.Config
	}
	for _, i := range vswitch.Alone(configs, filters) {
		names = append(names, ports[i].Name)
	}
	return names
}

// tellAlone prints notes about VLAN settings that are seldom intended: ports that can reach no
// other port, and a switch where only some ports have VLANs.
func (a *app) tellAlone(ports []control.Port, filters bool) {
	if names := alone(ports, filters); len(names) > 0 {
		a.note(fmt.Sprintf("ports that can reach no other port: %s (no other is in the same VLAN, or all are isolated)",
			namesText(names)))
	}
	var without []string
	for _, p := range ports {
		if !p.Config.HasVLANs() {
			without = append(without, p.Name)
		}
	}
	if filters && len(without) > 0 && len(without) < len(ports) {
		a.note(
			fmt.Sprintf(
				"ports without vlan and trunk are in VLAN 1, untagged: %s (trunk=all carries all VLANs, tagged)",
				namesText(without)))
	}
}

// namesText returns a list of names for one line, shortened.
func namesText(names []string) string {
	const most = 8
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// holderOf returns the process whose end removes the port. With -daemonize QEMU goes on as a child
// of that process; vmnet list shows its PID.
func holderOf(p control.Port) string {
	if p.Holder == 0 {
		return ""
	}
	pid := strconv.Itoa(p.Holder)
	if _, err := os.Stat("/proc/" + pid); p.Lifeline != 0 && errors.Is(err, fs.ErrNotExist) {
		return "heir of " + pid
	}
	return pid
}

func portRow(p control.Port) []string {
	row := []string{p.Name, p.Kind, p.Where(), "", "", "", portSettings(p.Config), "", "", "", "", p.Label}
	row[10] = holderOf(p)
	if st := p.Stats; st != nil {
		total := st.Total()
		row[3], row[4], row[5] = portState(st), strconv.Itoa(st.MTU), strconv.Itoa(len(st.Queues))
		row[7], row[8] = strconv.FormatUint(total.RxFrames, 10), strconv.FormatUint(total.TxFrames, 10)
		row[9] = dropText(st.Drops)
	}
	return row
}

func portState(st *vport.Stats) string {
	switch {
	case st.Ended != "":
		return "ended: " + st.Ended
	case st.Stopped > 0:
		return fmt.Sprintf("stopped: a loop, %d s left", st.Stopped)
	}
	return string(st.State)
}

// dropText lists how many frames were dropped for which reason, the most frequent first.
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
