package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const prepareLong = `Give a QEMU a NIC for a guest that is to come from another QEMU, by migration
or from a snapshot. It is an attach whose device stays down until vmnet commit, so that the guest's
address is never on the network twice. Nothing else raises the device: neither vmnet watch nor vmnet
reconcile, and vmnet check finds nothing wrong with it. vmnet abort removes the NIC again.

The guest brings the state of its devices along, so the NIC must be as it is where the guest comes
from: its id, --mac, --model, --queues, --mtu and --device-opt, and its place on the bus. QEMU
chooses the same place on the same machine with the same devices; otherwise name it with
--device-opt bus=BUS and --device-opt addr=ADDR. Bridge, VLANs and other settings of the port may
differ.

A routed guest's addresses are answered for, and routed, from the commit on. An ipvtap's guest has
the address of its parent device, so that must have the one of --mac. On a switch, --via socket and
--via vhost-user have no device: their port is down until the commit, and they need no root.

On a chassis of OVN the port is bound at once. Before that, requested-chassis of the logical port
must name both hosts, or they fight for it: see docs/ovn.md. --wait waits for OVN's flows.

The target of a migration is prepared before the guest's data comes. qemu-netup --prepared is the
same for NICs that QEMU has from its start. Of a libvirt guest, vmnet's hook prepares the NICs that
its domain declares when virsh migrate brings it, and has them committed (vmnet-hook(8)).`

const prepareExamples = `  vmnet prepare --vm P2 --bridge br0 --mac 52:54:00:aa:bb:01
  vmnet prepare --vm P2 --macvtap eth0 --mac 52:54:00:aa:bb:01 --device-opt bus=pci.0 --device-opt addr=10`

func (a *app) prepareCommand() *cobra.Command {
	var o attachOptions
	var target nic.Target
	cmd := &cobra.Command{
		Use:     "prepare --vm NAME --mac MAC --{bridge|network|...} PLACE",
		Short:   "Give a guest that will arrive by migration a NIC",
		Long:    prepareLong,
		Example: prepareExamples,
		Args:    noArgs("vm", "bridge"),
	}
	f := cmd.Flags()
	targetFlags(cmd, &target)
	flags := nicflags.AddNIC(f)
	flags.AddSwitch(f)
	flags.AddVia(f, false)
	f.BoolVar(&o.wait, "wait", false, "on a chassis of OVN, wait until it has installed the port's flows")
	durationFlag(f, &o.timeout, "timeout", 10*time.Second, time.Millisecond,
		"give up after this time; --wait is not counted")
	o.steps.add(cmd)
	format := outputFlag(cmd)
	cmd.InitDefaultHelpFlag()
	groupNICFlags(f)
	require(cmd, "mac")
	requireOne(cmd, "bridge", "network", "macvtap", "switch", "ipvtap", "routed")
	complete(cmd, "vm", runningGuests)
	complete(cmd, "via", cobra.FixedCompletions(nicflags.SwitchWays, noFiles))
	complete(cmd, "switch", switchNames)
	a.completeNIC(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		spec, err := flags.Spec()
		if err != nil {
			return usagef("%w", err)
		}
		o.spec, o.json = spec, *format == "json"
		o.spec.Target, o.spec.Prepared = target, true
		return a.attach(cmd.Context(), &o)
	})
	return cmd
}

// preparedOptions is the command line of commit and abort.
type preparedOptions struct {
	target  nic.Target
	nic     string
	wait    bool
	timeout time.Duration
	steps   stepFlags
}

func (o *preparedOptions) add(a *app, cmd *cobra.Command) *pflag.FlagSet {
	cmd.Args = noArgs("vm", "nic")
	f := cmd.Flags()
	targetFlags(cmd, &o.target)
	f.StringVar(&o.nic, "nic", "", "`ID` of the NIC within the guest (default all that are prepared)")
	o.steps.add(cmd)
	outputFlag(cmd)
	complete(cmd, "vm", a.attachedGuests)
	complete(cmd, "nic", a.nicIDs)
	return f
}

// check returns an error for wrong usage.
func (o *preparedOptions) check() error {
	err := nic.ValidVM(o.target.VM)
	if o.nic != "" {
		err = cmp.Or(err, nic.ValidNIC(o.nic))
	}
	if err != nil {
		return usagef("%w", err)
	}
	return nil
}

const commitLong = `Raise the prepared NICs of a guest that has arrived, and announce the guest: its
addresses (--ip) by gratuitous ARP and unsolicited neighbour advertisements, or its MAC by RARP if
none are known, so that switches and neighbours find it at once. QEMU also asks a guest that can
announce itself to do so. For a routed guest the host begins to answer, and says so to the LAN;
commit then asks the LAN for a second whether another machine still answers, and shows which. Each
NIC is one transaction. If vmnet is killed, vmnet reconcile or the same commit completes it. A NIC
that is committed stays as it is.

While QEMU waits for the guest, commit refuses; with --wait it waits. It has the guest's monitor
then, so the program that migrates the guest needs a monitor of its own: give QEMU two -qmp sockets.
A guest that has arrived and is paused can be committed before it is continued. For a libvirt guest,
a process of vmnet's hook does this; commit asks libvirt, and uses no monitor.`

func (a *app) commitCommand() *cobra.Command {
	var o preparedOptions
	cmd := &cobra.Command{
		Use:   "commit --vm NAME",
		Short: "Raise the prepared NICs of a guest that has arrived",
		Long:  commitLong,
		Example: `  vmnet commit --vm P2
  vmnet commit --vm P2 --wait              # started before the migration
  vmnet commit --vm P2 --nic net0 --dry-run`,
	}
	f := o.add(a, cmd)
	f.BoolVar(&o.wait, "wait", false, "wait until the guest has arrived")
	durationFlag(f, &o.timeout, "timeout", 10*time.Second, time.Millisecond,
		"give up after this time; with --wait only if it is given")
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		ctx, cancel := cmd.Context(), context.CancelFunc(func() {})
		if !o.wait || f.Changed("timeout") {
			ctx, cancel = withTimeout(ctx, o.timeout)
		}
		defer cancel()
		return a.withManager(func(m *tapmgr.Manager) error { return a.commit(ctx, m, &o) })
	})
	return cmd
}

func (a *app) commit(ctx context.Context, m *tapmgr.Manager, o *preparedOptions) error {
	o.steps.apply(a, m, a.json)
	done, err := m.Commit(ctx, o.target, o.nic, o.wait)
	for _, res := range done {
		a.notes(res.Notices)
	}
	if o.steps.planned {
		return err
	}
	return cmp.Or(a.printCommitted(done), err) // what was done even if another NIC failed
}

// committed is the result of commit for one NIC.
type committed struct {
	nic.NIC
	Changed     bool             `json:"changed"`
	Differences []nic.Difference `json:"differences,omitempty"`
}

func (a *app) printCommitted(done []nic.ChangeResult) error {
	if a.json {
		list := []committed{}
		for _, res := range done {
			list = append(list, committed{res.NIC, res.Changed, res.Differences})
		}
		return a.printJSON(list)
	}
	for _, res := range done {
		text := "unchanged"
		if res.Changed {
			text = "committed"
		}
		n := res.NIC
		if err := a.line("%s/%s: %s: %s %s on %s, MAC %s, %s", n.VM, n.ID, text, n.Type, n.Interface, n.Source,
			n.MAC, n.State); err != nil {
			return err
		}
	}
	return nil
}

const abortLong = `Remove the prepared NICs of a guest that does not come after all. Nobody has seen
its address. A guest that has come is asked to release them, as by vmnet detach. A QEMU that waits
for its guest has nobody to ask: its machine is reset, which releases them, and it goes on to wait.
So cancel the migration where the guest is first: while the guest's data arrives, abort refuses.

While libvirt brings a guest, abort refuses: virsh domjobabort on the host that it comes from gives
the migration up, and the NICs end with it.

It is success if no prepared NIC is there. A NIC that was committed is refused if --nic names it.`

func (a *app) abortCommand() *cobra.Command {
	var o preparedOptions
	cmd := &cobra.Command{
		Use:   "abort --vm NAME",
		Short: "Remove the prepared NICs of a guest that does not come",
		Long:  abortLong,
		Example: `  vmnet abort --vm P2
  vmnet abort --vm P2 --nic net0`,
	}
	f := o.add(a, cmd)
	durationFlag(f, &o.timeout, "timeout", 30*time.Second, time.Millisecond, "give up after this time")
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		ctx, cancel := withTimeout(cmd.Context(), o.timeout)
		defer cancel()
		return a.withManager(func(m *tapmgr.Manager) error { return a.abort(ctx, m, &o) })
	})
	return cmd
}

func (a *app) abort(ctx context.Context, m *tapmgr.Manager, o *preparedOptions) error {
	o.steps.apply(a, m, a.json)
	removed, notices, err := m.Abort(ctx, o.target, o.nic)
	a.notes(notices)
	if o.steps.planned {
		return err
	}
	return cmp.Or(a.printAborted(o.target.VM, removed, err == nil), err)
}

func (a *app) printAborted(vm string, removed []nic.NIC, done bool) error {
	if a.json {
		list := []detached{}
		for _, n := range removed {
			list = append(list, detached{n.VM, n.ID, true})
		}
		return a.printJSON(list)
	}
	for _, n := range removed {
		if err := a.line("%s/%s: aborted", n.VM, n.ID); err != nil {
			return err
		}
	}
	if len(removed) == 0 && done {
		return a.line("%s: unchanged: no prepared NIC is there", vm)
	}
	return nil
}
