package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network"
	"vmnet/internal/sdnotify"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const tapLong = `Make taps for virtual machine monitors (VMMs) that open one by its name, such as
Firecracker, Cloud Hypervisor and crosvm, or QEMU with -netdev tap,ifname=. Where the VMM can take
open files instead, qemu-netup(8) gives it its NICs without a name, also for users who are not root.`

func (a *app) tapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Make a tap for a VMM that opens it by its name",
		Long:  tapLong,
		Example: `  vmnet tap create --vm fc1 --bridge br0 --for firecracker
  vmnet detach --vm fc1 --nic net0`,
	}
	group(cmd)
	cmd.AddCommand(a.tapCreateCommand(), a.tapKeepCommand())
	return cmd
}

const tapCreateLong = `Make a tap that waits for a VMM which opens it by its name, and then goes with
that VMM, however it ends. The tap is complete before: it is on its bridge, has its settings, checks
and limits, and is up.

With --for, the result says what the VMM must be given. A VMM that runs as a user needs no privilege
to open the tap if --user names that user; Cloud Hypervisor also sets the tap up, which always takes
CAP_NET_ADMIN, so give it the tap as a file (qemu-netup) where it has none.

Until a VMM opens the tap, vmnet list shows it as "starting", and a process of vmnet waits. The
process that opens the tap is its VMM: only that keeps it alive from then on, and a VMM that is
started again needs another tap. If none opens it within --wait, the tap is removed. If the process that
waits is killed, vmnet reconcile does its work, and vmnet check says so.

The same again replaces a tap that waits. vmnet detach removes it; one that a VMM has it can only cut
off (--force), since such a VMM has no monitor that vmnet asks. vmnet set does not change it.`

// A vmm is a program that --for knows.
type vmm struct {
	name  string
	queue bool                   // it opens one queue only
	open  func(n nic.NIC) string // what it must be given
}

var vmms = []vmm{
	{"firecracker", true, func(n nic.NIC) string {
		text, _ := json.Marshal(struct { // strings alone
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
			MAC string `json:"guest_mac"`
		}{n.ID, n.Interface, n.MAC})
		return string(text)
	}},
	{"cloud-hypervisor", false, func(n nic.NIC) string {
		return fmt.Sprintf("--net tap=%s,mac=%s,num_queues=%d", n.Interface, n.MAC, 2*n.Queues)
	}},
	{"qemu", false, func(n nic.NIC) string {
		netdev, device := "", ""
		if n.Queues > 1 {
			netdev, device = fmt.Sprintf(",queues=%d", n.Queues), fmt.Sprintf(",mq=on,vectors=%d", 2*n.Queues+2)
		}
		return fmt.Sprintf("-netdev tap,id=%s,ifname=%s,script=no,downscript=no%s "+
			"-device virtio-net-pci,netdev=%s,mac=%s%s", n.ID, n.Interface, netdev, n.ID, n.MAC, device)
	}},
	{"crosvm", true, func(n nic.NIC) string {
		return fmt.Sprintf("--net tap-name=%s,mac=%s", n.Interface, n.MAC)
	}},
}

// tapOptions is the command line of tap create.
type tapOptions struct {
	spec   tapmgr.TapSpec
	vmm    string
	steps  stepFlags
	format *string
}

// notOfTaps are the flags of a NIC that its VMM decides, or that concern no tap with a name.
var notOfTaps = []string{
	"macvtap", "ipvtap", "mode", "source-mac", "nopromisc", "flag", "rx-filter", "mtu", "vhost", "model", "device-opt",
}

func (a *app) tapCreateCommand() *cobra.Command {
	var o tapOptions
	cmd := &cobra.Command{
		Use:   "create --vm NAME --{bridge|network|routed} PLACE",
		Short: "Make a tap that waits for its VMM and goes with it",
		Long:  tapCreateLong,
		Example: `  vmnet tap create --vm fc1 --bridge br0 --for firecracker --user fc
  vmnet tap create --vm ch1 --network lab --for cloud-hypervisor --queues 2
  vmnet tap create --vm P2 --bridge br0 --vlan 20 --port-security mac --for qemu --wait 1h`,
		Args: noArgs("vm", "bridge"),
	}
	f := cmd.Flags()
	f.StringVar(&o.spec.VM, "vm", "", "the guest's `NAME`")
	flags := addTapNIC(f)
	words := make([]string, len(vmms))
	for i, v := range vmms {
		words[i] = v.name
	}
	choice(cmd, f, &o.vmm, "for", "", "the VMM: what it must be given is printed", words...)
	f.Var(nicflags.Value("USER", "root", func(s string) (err error) {
		o.spec.User, err = uidOf(s)
		return err
	}), "user", "name or id of the user that the VMM runs as")
	durationFlag(f, &o.spec.Wait, "wait", 5*time.Minute, time.Second, "remove the tap if no VMM opens it in this time")
	o.steps.add(cmd)
	o.format = outputFlag(cmd)
	cmd.InitDefaultHelpFlag()
	groupNICFlags(f)
	require(cmd, "vm")
	requireOne(cmd, "bridge", "network", "routed")
	a.completeNIC(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) (err error) {
		if o.spec.Spec, err = flags.withGuest(o.spec.Target); err != nil {
			return err
		}
		return a.createTap(cmd.Context(), &o)
	})
	return cmd
}

// tapNIC are the flags of a NIC that a tap with a name has.
type tapNIC struct{ *nicflags.NIC }

func addTapNIC(f *pflag.FlagSet) tapNIC {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	n := tapNIC{nicflags.AddNIC(all)}
	all.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(notOfTaps, flag.Name) {
			f.AddFlag(flag)
		}
	})
	return n
}

func (n tapNIC) withGuest(t nic.Target) (nic.Spec, error) {
	s, err := n.Spec()
	if err != nil {
		return s, usagef("%w", err)
	}
	s.Target = t
	return s, nil
}

// uidOf returns the id of a user, who need not have a name.
func uidOf(s string) (int, error) {
	if id, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(id), nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, fmt.Errorf("there is no user of that name")
	}
	return strconv.Atoi(u.Uid)
}

// tapCreated is the result of tap create.
type tapCreated struct {
	nic.NIC
	Changed bool   `json:"changed"`
	VMM     string `json:"vmm,omitempty"`
	Open    string `json:"open,omitempty"` // what the VMM must be given
	Wait    int    `json:"wait_seconds"`
}

func (a *app) createTap(ctx context.Context, o *tapOptions) error {
	i := slices.IndexFunc(vmms, func(v vmm) bool { return v.name == o.vmm })
	if i >= 0 && vmms[i].queue && o.spec.Queues > 1 {
		return usagef("--queues %d: %s opens one", o.spec.Queues, o.vmm)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		o.steps.apply(a, m, a.json)
		m.Keep = func(ctx context.Context, vm, nicID string) error { return a.startKeeper(ctx, self, vm, nicID) }
		res, err := m.CreateTap(ctx, o.spec)
		if err != nil || o.steps.planned {
			return err
		}
		a.notes(res.Notices)
		made := tapCreated{NIC: res.NIC, Changed: true, VMM: o.vmm, Wait: int(o.spec.Wait.Seconds())}
		if i >= 0 {
			made.Open = vmms[i].open(res.NIC)
		}
		return a.printTap(made, o.spec.Wait)
	})
}

func (a *app) printTap(t tapCreated, wait time.Duration) error {
	if a.json {
		return a.printJSON(t)
	}
	who := "a VMM"
	if t.VMM != "" {
		who = t.VMM
	}
	err := a.line("%s/%s: %s %s on %s, MAC %s, %s, waits %v for %s", t.VM, t.ID, t.Type, t.Interface, t.Source, t.MAC,
		count(t.Queues, "queue"), wait, who)
	if err == nil && t.Open != "" {
		err = a.line("  %s", t.Open)
	}
	return err
}

// startKeeper starts the process that waits for a tap's VMM.
func (a *app) startKeeper(ctx context.Context, self, vm, nicID string) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	argv := []string{self, "tap", "keep", "--vm=" + vm, "--nic=" + nicID}
	if a.netns != "" {
		argv = append(argv, "--netns", a.netns)
	}
	b := network.Background{
		Command: argv, Systemd: network.SystemdRuns(ns),
		Unit:        fmt.Sprintf("vmnet-tap-%016x", rand.Uint64()), // process ids recur while keepers wait
		Description: "Waits for the VMM of " + vm + "/" + nicID,
	}
	return b.Start(ctx)
}

func (a *app) tapKeepCommand() *cobra.Command {
	var vm, nicID string
	cmd := &cobra.Command{
		Use:    "keep --vm NAME --nic ID",
		Short:  "Wait until a VMM opens a tap: what create runs in the background",
		Args:   noArgs("vm", "nic"),
		Hidden: true,
	}
	f := cmd.Flags()
	f.StringVar(&vm, "vm", "", "the guest's `NAME`")
	f.StringVar(&nicID, "nic", "", "`ID` of the NIC within the guest")
	outputFlag(cmd)
	require(cmd, "vm", "nic")
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		// It ends with the tap's wait, not with the terminal of tap create.
		signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
		return a.withManager(func(m *tapmgr.Manager) error {
			waits := false
			err := m.KeepTap(cmd.Context(), vm, nicID, func() error {
				waits = true
				return sdnotify.Notify("READY=1")
			})
			switch {
			case waits && errors.Is(err, fs.ErrNotExist): // removed, or replaced by the same again
				return a.result(detached{vm, nicID, false}, "%s/%s: its tap is gone", vm, nicID)
			case err != nil:
				return fmt.Errorf("keep %s/%s: %w", vm, nicID, err)
			}
			return a.result(detached{vm, nicID, true}, "%s/%s: its VMM has it", vm, nicID)
		})
	})
	return cmd
}
