package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) detachCommand() *cobra.Command {
	var spec tapmgr.DetachSpec
	var steps stepFlags
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:        "detach --vm NAME --nic ID",
		SuggestFor: []string{"remove", "rm", "del", "delete", "unplug"},
		Short:      "Take a NIC away from a guest",
		Long: `Take a NIC away: ask the guest to release it, wait until it has, and remove the rest.
It is success if the NIC is gone already. After 30 s (--timeout), detach fails: the NIC goes on
working and is listed as detaching, since the guest may still release it. Detach it again then, or
run vmnet reconcile. --force cuts it off.`,
		Example: `  vmnet detach --vm P2 --nic net0
  vmnet detach --vm P2 --nic net0 --timeout 2m   # a guest that is booting
  vmnet detach --vm P2 --nic net0 --force        # one that never answers
  vmnet detach --vm web --nic net0 --persistent  # also from the domain that libvirt stores`,
		Args: noArgs("vm", "nic"),
		RunE: a.verb(func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.detach(ctx, spec, &steps)
		}),
	}
	f := cmd.Flags()
	targetFlags(cmd, &spec.Target)
	f.StringVar(&spec.NIC, "nic", "", "`ID` of the NIC within the guest")
	f.BoolVar(&spec.Force, "force", false, "cut the NIC off at once, without waiting for the guest")
	f.BoolVar(&spec.Persistent, "persistent", false, "also remove it from the domain that libvirt stores")
	durationFlag(f, &timeout, "timeout", 30*time.Second, time.Millisecond,
		"give up after this time, for the monitor, the guest and the interface together")
	steps.add(cmd)
	outputFlag(cmd)
	require(cmd, "nic")
	complete(cmd, "vm", a.attachedGuests)
	complete(cmd, "nic", a.nicIDs)
	return cmd
}

// detached is the result of detach.
type detached struct {
	VM      string `json:"vm"`
	NIC     string `json:"nic"`
	Changed bool   `json:"changed"`
}

func (a *app) detach(ctx context.Context, spec tapmgr.DetachSpec, steps *stepFlags) error {
	if err := cmp.Or(nic.ValidVM(spec.VM), nic.ValidNIC(spec.NIC)); err != nil {
		return usagef("%w", err)
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		steps.apply(a, m, a.json)
		res, err := m.Detach(ctx, spec)
		a.notes(res.Notices)
		did := "detached"
		switch {
		case err != nil || steps.planned:
			return err
		case !res.Changed:
			did = "unchanged: there is no such NIC"
		case spec.Force:
			did = "cut off"
		}
		return a.result(detached{spec.VM, spec.NIC, res.Changed}, "%s/%s: %s", spec.VM, spec.NIC, did)
	})
}
