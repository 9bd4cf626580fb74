package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/why"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// whyVerb is the command line of why.
type whyVerb struct {
	vm, nic string
	to      string
	frame   why.Frame
	live    bool
	config  string // directory of the networks' files
}

func (a *app) whyCommand() *cobra.Command {
	o := whyVerb{to: string(why.Outside), frame: why.Frame{Kind: why.ICMP}}
	cmd := &cobra.Command{
		Use:   "why GUEST[/NIC]",
		Short: "Follow a frame of a guest until something stops it",
		Long: `Follow one frame that a guest sends, device by device: the guest's driver and its VMM,
the host interface, port security and rates, the port of the bridge or switch with its VLANs,
isolation, STP and FDB, the chains of firewalls, the host's forwarding, routes and NAT, the uplink,
and the other end back. The walk ends with the first thing that stops the frame and the command that
cures it. What cannot be seen from here is marked with a ?, with how to see it. Nothing is changed,
and without --live nothing is sent.

The frame is an echo request unless --frame names another one: arp, dhcp, tcp:PORT or udp:PORT. It
is for a host outside, unless --to names a guest or an address. Frames of tcp and udp are as large as
the guest's MTU permits.

With --live the host then sends probes to the guest, and to the other guest if --to names one: ARP
requests at the guest's tap and at its bridge, from no address (RFC 5227), and an echo request.
Meanwhile it counts what passes the devices of the frame's way, and what the kernel drops there, with
the reason and the function (tracepoint skb:kfree_skb, as root, Linux 5.17 or later with BTF; else
only counters). It takes at most ten seconds and leaves nothing behind. A macvtap is reached by the
host access of its parent device only.

Root sees most: the rules of firewalls, the guests of other users, and networks' settings. The exit
status is 1 if something stops the frame, 0 if nothing is found that does.`,
		Example: `  vmnet why P2
  vmnet why P2/net1 --frame dhcp
  vmnet why P2 --to P3 --frame tcp:443
  vmnet why P2 --to 10.0.0.1 -o json
  vmnet why P2 --live`,
		Args:              oneArg("the name of a guest, with /NIC for one of several"),
		ValidArgsFunction: a.attachedGuests,
	}
	a.whyFlags(cmd, &o)
	format := outputFlag(cmd)
	cmd.PreRunE = func(_ *cobra.Command, args []string) error { return o.parse(args[0]) }
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		walk, err := a.follow(cmd.Context(), &o)
		switch {
		case err != nil:
			return err
		case *format == "json":
			err = a.printJSON(walk)
		default:
			err = a.print("%s", walk.Text(min(terminalWidth(a.out), widestLines), a.paintVerdict))
		}
		if err == nil && walk.Stopped() != nil {
			err = exitStatus(exitFailure)
		}
		return err
	})
	return cmd
}

// whyFlags adds the flags of why, and their completion.
func (a *app) whyFlags(cmd *cobra.Command, o *whyVerb) {
	f := cmd.Flags()
	f.StringVar(&o.nic, "nic", "", "`ID` of the NIC, where the guest has several")
	f.StringVar(&o.to, "to", o.to, "`TARGET` of the frame: a GUEST or GUEST/NIC, an address, or outside")
	f.Var(nicflags.Value("KIND", o.frame.String(), func(s string) error {
		parsed, err := why.ParseFrame(s)
		parsed.VLAN, o.frame = o.frame.VLAN, parsed
		return err
	}), "frame", "`KIND` of the frame: arp, dhcp, icmp, tcp:PORT or udp:PORT")
	f.Var(nicflags.Value("ID", "", func(s string) (err error) {
		if o.frame.VLAN, err = strconv.Atoi(s); err != nil || o.frame.VLAN < 1 || o.frame.VLAN > 4094 {
			return errors.New("want 1 to 4094")
		}
		return nil
	}), "vlan", "the guest sends the frame with the tag of this VLAN `ID`")
	f.BoolVar(&o.live, "live", false, "also send probes, and watch what is counted and dropped")
	f.StringVar(&o.config, "config-dir", config.DefaultDir, "`DIRECTORY` of the networks' files")
	complete(cmd, "frame", cobra.FixedCompletions(why.Words, noFiles))
	complete(cmd, "to", func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion,
		cobra.ShellCompDirective,
	) {
		names, directive := a.attachedGuests(cmd, nil, word)
		return append(names, string(why.Outside)), directive
	})
}

// parse takes GUEST or GUEST/NIC.
func (o *whyVerb) parse(arg string) error {
	vm, id, hasID := strings.Cut(arg, "/")
	switch {
	case hasID && o.nic != "" && id != o.nic:
		return fmt.Errorf("%s and --nic %s name different NICs", arg, o.nic)
	case hasID:
		o.nic = id
	}
	if err := nic.ValidVM(vm); err != nil {
		return err
	}
	o.vm = vm
	return nil
}

func (a *app) follow(ctx context.Context, o *whyVerb) (*why.Walk, error) {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var walk *why.Walk
	err = a.withManager(func(m *tapmgr.Manager) error {
		q := why.Request{
			Manager: m, NS: ns, Dir: config.Dir(o.config), VM: o.vm, NIC: o.nic, To: o.to, Frame: o.frame,
		}
		facts, err := why.Read(ctx, q)
		if err != nil {
			return err
		}
		if walk = why.Follow(facts); o.live {
			walk.Live, err = why.Live(ctx, q, facts)
		}
		return err
	})
	return walk, err
}

func (a *app) paintVerdict(v why.Verdict, text string) string {
	return a.painted(map[why.Verdict]colour{why.Passes: green, why.Stops: red, why.Unknown: yellow}[v], text)
}
