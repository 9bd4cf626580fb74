package main

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const setLong = `Change a NIC while its guest runs, without the guest noticing: its bridge, network or
switch, the settings of its port, its addresses on a network, its port security, its rates, its
receive filter, the mode of a macvtap, and the state of its link. What no flag names stays. A flag
with the value none takes back what it has set, as does no for a flag without a value.

The change is one transaction: if a step fails, the NIC is as it was. If vmnet is killed, the NIC's
state is changing, vmnet check says so, and vmnet reconcile or the same set completes it.

A NIC that moves keeps its device and its guest's connections. Its guest's addresses (--ip) are
announced on the new bridge by gratuitous ARP and unsolicited neighbour advertisements, or the MAC
by RARP if none are known; QEMU also asks a guest that can announce itself to do so. While the link
is down, the guest and its neighbours see no carrier.

A tap moves from bridge to bridge, or from switch to switch. The port of a switch keeps its frames
and addresses while its settings change. When a NIC leaves a network, vmnet names the forwards that
no longer reach it.

What the guest learned when the NIC was plugged cannot change: its MAC, MTU, model, queues and
vhost, and the switch at the other end of a socket. The kernel ties a macvtap or ipvtap to its
parent device for good: detach it, and attach it to the other one. vmnet says why, and what to do.
With a lower MTU the host would only drop what the guest still sends, and the guest would not know
of a higher one. The guest itself may use a lower MTU than it was given: ip link set DEV mtu N in
the guest. To give it another MTU: vmnet detach, and vmnet attach --mtu N.

libvirt follows: the link's state in the definitions of a libvirt guest, and the place in what the
domain declares to vmnet's hook.`

const setExamples = `  vmnet set --vm P2 --nic net0 --bridge br1 --vlan 20
  vmnet set --vm P2 --nic net0 --network lab --ip 10.66.0.20
  vmnet set --vm P2 --nic net0 --isolated=no --vlan none
  vmnet set --vm P2 --nic net0 --port-security all --ip 10.0.0.7
  vmnet set --vm P2 --nic net0 --link down
  vmnet set --vm P2 --nic net0 --bridge br1 --dry-run`

func (a *app) setCommand() *cobra.Command {
	var target nic.Target
	var id string
	var steps stepFlags
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:        "set --vm NAME --nic ID ...",
		SuggestFor: []string{"change", "move", "modify", "update"},
		Short:      "Change a NIC while its guest runs",
		Long:       setLong,
		Example:    setExamples,
		Args:       noArgs("vm", "nic"),
	}
	f := cmd.Flags()
	targetFlags(cmd, &target)
	f.StringVar(&id, "nic", "", "`ID` of the NIC within the guest")
	change := nicflags.AddChange(f)
	durationFlag(f, &timeout, "timeout", 10*time.Second, time.Millisecond, "give up after this time")
	steps.add(cmd)
	format := outputFlag(cmd)
	groupNICFlags(f)
	require(cmd, "nic")
	complete(cmd, "vm", a.attachedGuests)
	complete(cmd, "nic", a.nicIDs)
	complete(cmd, "link", cobra.FixedCompletions([]string{"up", "down"}, noFiles))
	a.completeNIC(cmd)
	complete(cmd, "switch", switchNames)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if err := cmp.Or(nic.ValidVM(target.VM), nic.ValidNIC(id)); err != nil {
			return usagef("%w", err)
		}
		if change.IsEmpty() {
			return usagef("vmnet set needs what to change, such as --bridge or --vlan (vmnet set --help)")
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			steps.apply(a, m, *format == "json")
			res, err := setInTime(cmd.Context(), m, timeout, target, id, change)
			if err != nil {
				return err
			}
			a.notes(res.Notices)
			if steps.planned {
				return nil
			}
			return a.printSet(res)
		})
	})
	return cmd
}

func setInTime(ctx context.Context, m *tapmgr.Manager, timeout time.Duration, t nic.Target, id string,
	change *nicflags.Change,
) (nic.ChangeResult, error) {
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	return m.Set(ctx, t, id, change.Edit)
}

// changed is the result of set.
type changed struct {
	nic.NIC
	Changed     bool             `json:"changed"`
	Changes     []nic.Change     `json:"changes"`
	Differences []nic.Difference `json:"differences,omitempty"`
}

func (a *app) printSet(res nic.ChangeResult) error {
	var texts []string
	for _, c := range res.Changes {
		texts = append(texts, c.Flag+" "+cmp.Or(c.From, "none")+" -> "+cmp.Or(c.To, "none"))
	}
	text := strings.Join(texts, ", ")
	switch {
	case !res.Changed:
		text = "unchanged"
	case text == "":
		text = "restored"
	}
	if res.Changes == nil {
		res.Changes = []nic.Change{}
	}
	n := res.NIC
	return a.result(changed{n, res.Changed, res.Changes, res.Differences}, "%s/%s: %s", n.VM, n.ID, text)
}
