package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
)

func fastPathFlag(cmd *cobra.Command, mode *string) {
	modes := []string{control.FastPathAuto, control.FastPathOff}
	*mode = control.FastPathAuto
	cmd.Flags().Var(nicflags.Value("MODE", control.FastPathAuto, func(s string) error {
		if !slices.Contains(modes, s) {
			return fmt.Errorf("want %s or %s", modes[0], modes[1])
		}
		*mode = s
		return nil
	}), "fast-path", "whether the kernel forwards frames between packet ports where it can: auto or off")
	complete(cmd, "fast-path", cobra.FixedCompletions(modes, noFiles))
}

// fastPathText says at how many packet ports the kernel forwards frames.
func fastPathText(s shownSwitch) string {
	on, all := 0, 0
	for _, p := range s.Plugged {
		if p.Stats == nil || p.Stats.FastPath == nil {
			continue
		}
		all++
		if p.Stats.FastPath.On {
			on++
		}
	}
	switch {
	case s.FastPath == control.FastPathOff:
		return "off"
	case all == 0:
		return "no packet ports"
	}
	return fmt.Sprintf("at %d of %s", on, count(all, "packet port"))
}

// tellSlow prints a note for each reason why the kernel does not forward the frames of packet
// ports, with the ports.
func (a *app) tellSlow(s shownSwitch) {
	if s.FastPath == control.FastPathOff {
		return
	}
	names := map[string][]string{}
	for _, p := range s.Plugged {
		if st := p.Stats; st != nil && st.FastPath != nil && !st.FastPath.On {
			names[st.FastPath.Why] = append(names[st.FastPath.Why], p.Name)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(names)) {
		a.note(fmt.Sprintf("no fast path at %s: %s", namesText(names[why]), why))
	}
}
