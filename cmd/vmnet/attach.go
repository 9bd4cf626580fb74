package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/routed/obstacles"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"

	"github.com/spf13/cobra"
)

// attachOptions is the command line of attach.
type attachOptions struct {
	spec    nic.Spec
	steps   stepFlags
	wait    bool
	timeout time.Duration
	json    bool
}

const attachLong = `Give a running guest a NIC, on a bridge, on a userspace switch, or directly on a
interface of the host (its parent device). A failed attach leaves nothing behind. The same command
again succeeds; it changes nothing if the NIC is as it should be, and otherwise restores it as vmnet
reconcile does, or says who must. It finds a bridge or parent device that was renamed under a NIC by
either name.

A bridge whose address nobody has set takes that of its lowest port. If that would be a guest's
address, the bridge keeps the one that it has, so that neighbours still find the host when a guest
ends (ip link set BRIDGE address MAC sets another). A bridge that filters VLANs and has no default
VLAN accepts no NIC without --vlan or --trunk. Without a machine id (machine-id(5)) the default MAC
changes at the next boot, and a note says so.

A bridge of Open vSwitch is recognised. The NIC is then a port in its database (--ovsdb names
another than the machine's), with the id by which OVN knows it (--iface-id), and --vlan, --trunk,
--native and --isolated (Open vSwitch's "protected") are its port's. The row in the database, which
only root and qemu-netup reach, says for which device it was made; detach removes it, and once the
guest has ended vmnet watch at once, the next attach of that NIC, or vmnet reconcile. A port of that
name which vmnet did not make is left alone, and the attach fails. If the bridge forwards in user
space (datapath_type=netdev), the guest's NIC has no offloads, since nothing there completes
checksums, and port security and rates are refused: Open vSwitch takes the frames before the kernel
can check them. On a chassis of OVN, --wait waits until OVN has installed the port's flows. Give
NICs behind its tunnels --mtu 1442.

The guest is found by its name among the caller's own processes, and its QMP monitor among the
sockets that the kernel lists for it, however QEMU was configured (-qmp, -mon, -chardev,
-readconfig) and whatever the program's name. A process whose user ids differ, or did not all belong
to its user when it was executed, is never taken for a guest. Use --pid for a guest that has no
name, or that another user runs.

The NIC is plugged into the bus that fits its model and supports hot plug: a slot of a pc or pseries
machine, an empty PCI Express root port of q35, virt or microvm with pcie=on, channel I/O of s390x
(where the default model is virtio-net-ccw), or USB (--model usb-net). A Linux guest on microvm
notices it only with pcie_ports=native on its command line. A machine without any of these, such as
microvm without pcie=on, can get a NIC only at its start, from qemu-netup.

On a network (vmnet network create) the guest is known by its name, and its bridge is the network's.
With --ip the network's server gives the guest that IPv4 address; one that is not free is refused.
The attach waits until the server knows the guest. An IPv6 address is known by name on a network of
root, and the guest sets it itself.

On a userspace switch (vmnet switch run), and on a network of a user who is not root, --via socket
gives QEMU one end of a stream socketpair and the switch the other: that needs no privilege and
makes no device. --via tap gives QEMU a tap whose kernel side the switch takes: it has queues,
offloads and vhost, and needs CAP_NET_ADMIN and CAP_NET_RAW. With --via vhost-user the guest shares
its memory with the switch, which copies frames from there and to there: the fastest, without
privilege, for a guest that was started with shared memory. The switch can read and write all of
that memory, so it must be of QEMU's own user or of root, or of a user for whom policy.yaml(5) has
share-memory; auto never chooses this. The port is removed when QEMU exits, however it exits.
--storm limits the frames of the guest that are flooded, and --max-addresses the addresses that are
learned. When the switch ends, vmnet reconcile connects a tap, or a NIC by vhost-user, to the next
switch of that name; a NIC on a socket is disconnected until you attach it again.

With --routed the guest has addresses of the LAN behind an uplink, without a bridge: the host routes
each --ip to the guest's tap, and answers for it on the uplink by entries of proxy ARP and NDP. The
LAN sees the uplink's MAC alone, as Wi-Fi and hosters that filter by MAC demand. The LAN, the host
and other guests reach the guest. An address that the host, another routed guest or a machine on the
LAN has is refused; the LAN is asked for a second. The guest's addresses are announced there (needs
CAP_NET_RAW). A note names chains of Docker, ufw, firewalld and others that drop the guest's
traffic, with the cure; so do vmnet check and doctor. attach and show print what the guest must be
configured with: its addresses, and default routes via 169.254.0.1 and fe80::1. Nothing answers DHCP
or sends router advertisements on its tap: write that into the guest, or give it by cloud-init; for
DHCP put the guest on a network (vmnet network create). The kernel drops IPv4 packets from other
addresses than the guest's (rp_filter); nothing checks the sources of its IPv6 packets. Forwarding
is turned on for the tap and the uplink, before Linux 6.17 for IPv6 on all links, and set back after
the last routed guest. The tap and its routes go with the guest. The entries stay until vmnet watch,
detach or reconcile removes them; until then the host goes on to answer for the guest's IPv6
addresses.

With --port-security the guest's frames are checked from its first one on: all is the list
mac,ip,arp,nd,dhcp,ra,vlan. mac: the source is the NIC's own MAC. ip: the source is an address of
--ip, or in a network of --ip. arp and nd: the guest answers and asks for its own addresses only.
dhcp: it is no DHCP server. ra: it sends no IPv6 router advertisement. vlan: it sends no VLAN tag.
Each but mac and vlan also drops other protocols than IPv4, IPv6 and ARP, unless --allow-ethertype
names them. Without the guest's addresses, use mac,arp,nd,dhcp,ra,vlan. A DHCP client, duplicate
address detection and announcements after a migration pass. On a switch the switch checks; at a tap,
macvtap or ipvtap a BPF program in the kernel does (Linux 5.10), which takes root of the host. Where
that is not possible the attach fails. vmnet show counts the dropped frames by their reasons, vmnet
check notices if somebody has removed the program, and vmnet set changes it without a gap.

With --allow-in everything that comes in to the guest is dropped, but for answers and for what the
rules allow: tcp:PORT, udp:PORT or a range of ports, icmp (a ping), any, each also with ,from= a
network. --allow-in answers allows nothing else. An answer belongs to what the guest has asked: to
its connection, its datagram (for 5 minutes), its ping, or as an ICMP error about one of them; later
fragments follow the first one. ARP, neighbor discovery, router advertisements, queries of multicast
groups and answers of DHCP servers pass; other protocols than IPv4 and IPv6, and multicast, need
--allow-ethertype or a rule. It holds for senders on the host as well. A connection that the guest
has begun, or answered before, continues when rules change. Two BPF programs at the tap, macvtap or
ipvtap do it (Linux 5.10); they and the up to 32768 flows that they remember, 4 MB, belong to this
NIC alone and go with it. They work without nftables, conntrack and br_netfilter, and nft flush
ruleset does not remove them. They do not compare sequence numbers. A userspace switch cannot do it.

--rate-up limits what the guest sends, --rate-down what it receives, in bits per second (100M, 2.5G)
of whole Ethernet frames, packets per second (20kpps), or both. --burst is what passes at once after
an idle time. What comes in at the NIC's device on the host and is over the rate is dropped: from
the guest at a tap, to it at a macvtap or ipvtap. What goes out waits (tc-tbf(8)): as much as the
rate passes in 50 ms, and 128 KiB more. On a switch, a guest that sends too much waits, and what is
over the rate to it is dropped. With --shape, as many frames over a rate in bits wait in both
directions: what comes in passes an ifb device, shapeN, which vmnet removes with the NIC, and vmnet
watch when the guest is killed (without it the next reconcile, or the next NIC with --shape). That
takes ifb, u32 and mirred of the kernel. A qdisc or filter of another program in the place is never
replaced.
The limits are there before the first frame, go with the device, and change in place (vmnet set).
vmnet check notices if somebody has changed them. They take tbf and BPF of the kernel (Linux 5.10).

Guests that libvirt manages are recognised automatically. vmnet makes the device, libvirt plugs it
(<interface type='ethernet'> with managed='no', alias ua-vmnet-ID), and virsh shows it. A tap
disappears with its guest; a macvtap stays when the guest ends, until vmnet detach, the hook, vmnet
watch or vmnet reconcile removes it. With vmnet's hook (vmnet hook install) the guest can be saved,
migrated and reverted to a snapshot with the NIC. With --persistent, libvirt also stores the NIC:
the guest then starts with it, and a clone of the guest starts with a NIC of its own. Use --via
monitor for settings that libvirt's XML cannot express, and for a port of a switch (--via
monitor,socket or monitor,vhost-user): QEMU gets the fds through libvirt's monitor commands. libvirt
then does not know the NIC, cannot migrate the guest with it, and marks the domain as tainted.`

const attachExamples = `  vmnet attach --vm P2 --bridge br0
  vmnet attach --vm P2 --bridge br-int --iface-id g1 --mtu 1442 --wait   # OVN
  vmnet attach --vm P2 --network lab --ip 10.66.0.20
  vmnet attach --vm P2 --routed wlan0 --ip 192.0.2.11 --ip 2001:db8::11
  vmnet attach --vm P2 --bridge br0 --nic net1 --queues auto --wait
  vmnet attach --vm P2 --bridge br0 --port-security all --ip 10.0.0.7
  vmnet attach --vm P2 --bridge br0 --rate-up 100M --rate-down 1G
  vmnet attach --vm P2 --bridge br0 --mtu 1400 --device-opt rx_queue_size=1024
  vmnet attach --vm P2 --macvtap eth0 --mode bridge
  vmnet attach --vm P2 --ipvtap wlan0 --ip 192.0.2.7/24
  vmnet attach --vm P2 --switch sw0 --via socket     # without any privilege
  vmnet attach --vm P2 --switch sw0 --via vhost-user # with shared memory: fast
  vmnet attach --vm web --bridge br0 --persistent   # a libvirt guest
  vmnet attach --vm P2 --bridge br0 --dry-run`

func (a *app) attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:        "attach --vm NAME --{bridge|network|routed|switch|...} PLACE",
		SuggestFor: []string{"add", "plug", "connect"},
		Short:      "Give a running guest a NIC",
		Long:       attachLong,
		Example:    attachExamples,
		Args:       noArgs("vm", "bridge"),
	}
	f := cmd.Flags()
	var target nic.Target
	targetFlags(cmd, &target)
	nic := nicflags.AddNIC(f)
	nic.AddSwitch(f)
	nic.AddVia(f, true)
	complete(cmd, "via", cobra.FixedCompletions(slices.Concat(nicflags.LibvirtWays, nicflags.SwitchWays), noFiles))
	complete(cmd, "switch", switchNames)
	var persistent bool
	f.BoolVar(&persistent, "persistent",
		false, "also store the NIC in libvirt, so that the guest starts with it (needs vmnet hook install)")
	f.BoolVar(&o.wait, "wait", false,
		"wait until the bridge port forwards, which takes 30 s if the bridge runs STP; on a chassis of OVN, for its flows")
	durationFlag(f, &o.timeout, "timeout", 10*time.Second, time.Millisecond,
		"give up after this time; --wait is not counted")
	o.steps.add(cmd)
	format := outputFlag(cmd)
	cmd.InitDefaultHelpFlag()
	groupNICFlags(f)
	requireOne(cmd, "bridge", "network", "macvtap", "ipvtap", "switch", "routed")
	complete(cmd, "vm", runningGuests)
	a.completeNIC(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		spec, err := nic.Spec()
		if err != nil {
			return usagef("%w", err)
		}
		o.spec, o.json = spec, *format == "json"
		o.spec.Target, o.spec.Persistent = target, persistent
		return a.attach(cmd.Context(), &o)
	})
	return cmd
}

// completeNIC completes those of the flags of nicflags.AddNIC that the command has.
func (a *app) completeNIC(cmd *cobra.Command) {
	completeIf(cmd, "bridge", a.bridgeNames)
	completeIf(cmd, "network", a.networksToJoin)
	completeIf(cmd, "routed", a.interfaceNames)
	completeIf(cmd, "macvtap", a.interfaceNames)
	completeIf(cmd, "ipvtap", a.interfaceNames)
	for flag, words := range map[string][]string{
		"mode":      append(vtap.Modes(vtap.Macvtap), vtap.Modes(vtap.IPVtap)...),
		"rx-filter": {nic.RxAllMulti, nic.RxMirror, nic.RxNone},
		"queues":    nicflags.Queues,
		"vhost":     nicflags.Vhosts,

		"port-security": nicflags.Securities,
		"allow-in":      nicflags.Inbounds,
		"model":         {"virtio-net-pci", "e1000", "e1000e", "rtl8139", "vmxnet3"},
	} {
		completeIf(cmd, flag, cobra.FixedCompletions(words, noFiles))
	}
}

func (a *app) attach(ctx context.Context, o *attachOptions) error {
	if err := o.spec.Validate(); err != nil {
		return err
	}
	network, own := o.spec.Network, false
	if network != "" {
		var err error
		if own, err = a.joinNetwork(ctx, &o.spec); err != nil {
			return err
		}
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		o.steps.apply(a, m, o.json)
		res, err := attachInTime(ctx, m, o)
		if err != nil {
			return tellOfHelper(m, err)
		}
		a.notes(res.Notices)
		if o.steps.planned {
			return nil
		}
		a.tellRouted(ctx, res.NIC)
		if own {
			if err := awaitAddress(ctx, network, res.NIC); err != nil {
				a.note(err.Error())
			}
		}
		var waitErr error
		if o.wait {
			waitErr = a.waitForwarding(ctx, m, &res)
		}
		// The NIC is attached, even if it does not forward: report that first.
		if err := a.printAttached(res, o.json); err != nil {
			return err
		}
		return waitErr
	})
}

// tellRouted notes what drops the traffic of a routed guest.
func (a *app) tellRouted(ctx context.Context, n nic.NIC) {
	if n.Type != nic.TypeRouted {
		return
	}
	found, err := obstacles.In(ctx, a.netns, n.Interface)
	if err != nil {
		a.note(err.Error())
	}
	for _, d := range found.Differences {
		a.note(fmt.Sprintf("%s/%s: %s (%s)", d.VM, d.NIC, d.Found, d.Mend))
	}
	a.notes(found.Notices)
}

func attachInTime(ctx context.Context, m *tapmgr.Manager, o *attachOptions) (nic.Result, error) {
	ctx, cancel := withTimeout(ctx, o.timeout)
	defer cancel()
	if o.spec.Prepared {
		return m.Prepare(ctx, o.spec)
	}
	return m.Attach(ctx, o.spec)
}

// forwardSlack is how much later than estimated a port may start to forward.
const forwardSlack = 5 * time.Second

func (a *app) waitForwarding(ctx context.Context, m *tapmgr.Manager, res *nic.Result) error {
	n, verb, done := &res.NIC, "attach", "attached"
	if n.State == nic.Prepared {
		verb, done = "prepare", "prepared"
	}
	if n.State == forwarding || n.State == nic.Prepared && n.Type != nic.TypeOVS {
		return nil
	}
	limit := res.ForwardIn + forwardSlack
	if n.Type == nic.TypeOVS {
		limit = tapmgr.ForwardWait
	}
	a.say(fmt.Sprintf("waiting until %s forwards, %.0f s at most", n.Interface, limit.Seconds()))
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("it does not forward after %v", limit.Round(time.Second)))
	defer cancel()
	if err := m.WaitForwarding(ctx, *n); err != nil {
		return fmt.Errorf("%s %s/%s: the NIC is %s, but: %w", verb, n.VM, n.ID, done, err)
	}
	if n.State != nic.Prepared {
		n.State, res.ForwardIn = forwarding, 0
	}
	return nil
}

const forwarding nic.State = "forwarding"

func (a *app) printAttached(res nic.Result, json bool) error {
	n := res.NIC
	if json {
		return a.printJSON(struct {
			nic.NIC
			Changed     bool             `json:"changed"`
			ForwardIn   float64          `json:"forwards_in_seconds,omitempty"`
			Differences []nic.Difference `json:"differences,omitempty"`
			// of a routed NIC
			GuestConfig *nic.GuestConfig `json:"guest_config,omitempty"`
		}{n, res.Changed, res.ForwardIn.Seconds(), res.Differences, n.GuestConfig()})
	}
	unchanged := ""
	switch {
	case res.Changed:
	case len(res.Differences) > 0:
		unchanged = "attached, but not as it should be: "
	default:
		unchanged = "unchanged: "
	}
	mode, on := "", n.Source
	if n.Type == nic.TypeOVS {
		mode = ", iface-id " + n.IfaceID
	}
	if n.Switch {
		on = "switch " + n.Source
	}
	if n.Network != "" {
		on = "network " + n.Network
	}
	if len(n.IP) > 0 {
		on += ", IP " + nic.FormatIPs(n.IP)
	}
	if n.Mode != "" {
		mode = " mode " + n.Mode
	}
	if settings := nicSettings(n); settings != "" {
		mode += " with " + settings
	}
	state := ""
	if n.State == nic.Prepared {
		state = ", down until vmnet commit"
	}
	err := a.line("%s/%s: %s%s %s on %s%s, MAC %s, %s, vhost %s%s", n.VM, n.ID, unchanged,
		n.Type, n.Interface, on, mode, n.MAC, count(n.Queues, "queue"), n.Vhost, state)
	if c := n.GuestConfig(); c != nil && err == nil {
		return a.line("%s", c)
	}
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
