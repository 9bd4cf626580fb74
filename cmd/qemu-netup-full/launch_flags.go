package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/network/userdirs"
	"vmnet/internal/vmm/launch"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// launchOptions is the command line of the form that executes a VMM.
type launchOptions struct {
	vm         string
	qmp        string
	place      string
	netns      string
	sparePorts int
	prepared   bool
	wait       bool
	dryRun     bool
	verbose    bool
	given      []string // names of the given flags among ofAll
	nics       []nicOptions
	argv       []string // the VMM's command line
	vmm        string
	guest      []string // QEMU's own part of argv, with the files that it reads; nil: unknown
	unread     []string // files that QEMU will read and this process has not
	notices    []string // of choose
}

// nicOptions has the options of one NIC.
type nicOptions struct {
	spec    nic.Spec
	profile string
	queues  bool // --queues was given
	auto    bool // as auto
	chosen  bool // its memory is shared because choose says so
}

// maxNICs is more than any machine has room for.
const maxNICs = 32

// nextNIC separates the options of one NIC from those of the next.
const nextNIC = "--next-nic"

// newLaunchOptions returns the defaults.
func newLaunchOptions() *launchOptions {
	return &launchOptions{
		qmp: "none", place: string(qemu.PlaceAuto), vmm: string(launch.VMMAuto),
		sparePorts: launch.DefaultSparePorts,
	}
}

// parseLaunch reads everything before and after --.
func parseLaunch(args []string) (*launchOptions, error) {
	o := newLaunchOptions()
	end := slices.Index(args, "--")
	if end < 0 {
		return nil,
			usagef(
				"the program is missing: want -- and then the guest's command line, such as -- qemu-system-x86_64 -m 1G disk.img")
	}
	args, o.argv = args[:end], args[end+1:]
	if len(o.argv) == 0 {
		return nil, usagef("nothing follows --: want the guest's command line")
	}
	for {
		i := slices.Index(args, nextNIC)
		segment := args
		if i >= 0 {
			segment = args[:i]
		}
		if err := o.parseNIC(segment); err != nil {
			return nil, err
		}
		if i < 0 {
			break
		}
		if args = args[i+1:]; len(o.nics) == maxNICs {
			return nil, usagef("more than %d NICs", maxNICs)
		}
	}
	return o, nil
}

func (o *launchOptions) parseNIC(args []string) error {
	f := newFlags()
	flags := o.flags(f)
	profile, by := ownFlags(f)
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return usagef("argument %q: the program to run comes after --", f.Arg(0))
	}
	if err := o.once(f); err != nil {
		return err
	}
	spec, err := flags.Spec()
	if err != nil {
		return usageError{err}
	}
	if spec.Switch != nil {
		if *profile != "" {
			return usagef("--profile %s: a NIC on a switch takes no profile", *profile)
		}
		spec.Switch.By = nic.By(*by)
	} else if f.Changed("via") {
		if spec.Network == "" {
			return usagef("--via %s goes with --switch, or with --network for a network of yours", *by)
		}
		spec.Switch = &nic.Switch{By: nic.By(*by)} // which ownNetworks completes
	}
	if !f.Changed("nic") {
		spec.NIC = fmt.Sprintf("net%d", len(o.nics))
	}
	o.nics = append(o.nics, nicOptions{spec: spec, profile: *profile, queues: f.Changed("queues")})
	return nil
}

// ownFlags adds the flags of a NIC that vmnet attach has not, or has with other words.
func ownFlags(f *pflag.FlagSet) (profile, by *string) {
	profile = f.String("profile", "", profileUsage)
	socket := string(nic.BySocket) // which needs no privilege
	by = &socket
	nicflags.Choice(f, by, "via", "",
		"on a switch: what connects QEMU to it. With vhost-user the guest shares its memory with the switch; "+
			"the default on a network of yours, if QEMU's command line allows it",
		string(nic.BySocket), string(nic.ByVhostUser))
	return profile, by
}

// ofAll returns the names of the flags that apply to all NICs.
func ofAll() []string {
	return []string{"vm", "vmm", "qmp", "spare-ports", "place", "prepared", "wait", "netns", "dry-run", "verbose"}
}

// once refuses to take those flags a second time.
func (o *launchOptions) once(f *pflag.FlagSet) (err error) {
	f.Visit(func(flag *pflag.Flag) {
		if !slices.Contains(ofAll(), flag.Name) {
			return
		}
		if slices.Contains(o.given, flag.Name) {
			err = usagef("--%s is given twice, but applies to all NICs (give it once)", flag.Name)
		}
		o.given = append(o.given, flag.Name)
	})
	return err
}

// flags adds the flags of a NIC and those of all NICs, which may stand at any NIC.
func (o *launchOptions) flags(f *pflag.FlagSet) *nicflags.NIC {
	nic := nicflags.AddNIC(f)
	nic.AddSwitch(f)
	f.StringVar(&o.vm, "vm", o.vm, "the guest's `NAME` (default that of QEMU's -name guest=)")
	f.StringVar(&o.qmp, "qmp", o.qmp, "give QEMU a monitor: auto (where vmnet attach finds it), a `PATH`, or none")
	nicflags.Number(f, &o.sparePorts, "spare-ports", "N",
		"N empty PCI Express ports (q35, virt) for NICs that are attached later")
	nicflags.Choice(f, &o.place, "place", "", "where NICs are plugged (default by the machine's type)",
		launch.Places()...)
	nicflags.Choice(f, &o.vmm, "vmm", "",
		"how PROGRAM takes its NICs: qemu, as arguments at its end; env, by VMNET_ARGS or VMNET_JSON; "+
			"default: by the program",
		"auto", "qemu", "env")
	f.BoolVar(&o.prepared, "prepared", o.prepared,
		"the guest comes by migration (-incoming): its NICs are down until vmnet commit (as root, if they have a device)")
	f.BoolVar(&o.wait, "wait", o.wait,
		"start PROGRAM once its NICs' ports forward, on a chassis of OVN once their flows are there")
	f.StringVar(&o.netns, "netns",
		o.netns, "the network namespace of bridges and taps, a `NAME` of ip-netns(8) or a path; for root")
	f.BoolVar(&o.dryRun, "dry-run", o.dryRun, "print every step and the command line, and change nothing")
	f.BoolVarP(&o.verbose, "verbose", "v", o.verbose, "print every step with the time it took to stderr")
	return nic
}

// guestFiles is how launchOptions.name inspects files, with the caller's privileges.
type guestFiles struct {
	target func(program string) string // resolves symbolic links
	read   func(path string) (string, error)
}

// name finds QEMU in the command line, and sets the guest's name, the model and the queues of each
// NIC.
func (o *launchOptions) name(files guestFiles) error {
	guest, findErr := launch.Find(launch.VMM(o.vmm), o.argv, files.target)
	if guest != nil {
		o.guest, o.unread = qemu.Expand(guest, files.read)
	}
	name, err := launch.GuestName(o.vm, o.guest)
	if err = cmp.Or(err, findErr); err != nil {
		return err
	}
	place := qemu.Place(o.place).Of(o.guest)
	for i := range o.nics {
		n := &o.nics[i]
		s := &n.spec
		s.VM, n.auto = name, s.Queues == nic.QueuesAuto
		if s.Model = cmp.Or(s.Model, place.Model()); s.Model == "" {
			return usagef(
				"the machine %s takes no NIC besides those of its board (--place or --model overrides this)",
				qemu.MachineOf(o.guest).Type)
		}
		o.choose(n, files)
		switch {
		case s.Queues != nic.QueuesAuto:
		case s.Switch != nil && s.Switch.By != nic.ByVhostUser || !strings.HasPrefix(s.Model, "virtio-net"):
			s.Queues = 1 // a socket and other models have one
		default:
			s.Queues = min(qemu.CPUs(o.guest), nic.MaxAutoQueues)
		}
	}
	return nil
}

// settle fills in from the profiles what the command line does not give, and validates the result.
func (o *launchOptions) settle(p *policy.Policy) ([]nic.Spec, error) {
	var specs []nic.Spec
	for _, n := range o.nics {
		s := n.spec
		s.Prepared = o.prepared
		if n.profile != "" {
			from, err := p.Profile(n.profile)
			if err != nil {
				return nil, err
			}
			if s.Source() == "" {
				s.Bridge, s.Network, s.OVSDB = from.Bridge, from.Network, cmp.Or(s.OVSDB, from.OVSDB)
			}
			if s.Port.IsZero() && s.Lower == nil {
				s.Port = from.Port
			}
			if !n.queues && from.Queues != 0 {
				s.Queues = from.Queues
			}
		}
		if err := s.Validate(); err != nil {
			return nil, err
		}
		specs = append(specs, s)
	}
	return specs, nil
}

// ownNetworks puts the NICs that are to be on networks of the calling user on their switches, for
// which no privilege is needed, and returns these NICs. Root has no such networks.
func (a *app) ownNetworks(o *launchOptions) (own []*nic.Spec, err error) {
	for i := range o.nics {
		s := &o.nics[i].spec
		joined := false
		if !a.p.Caller.Root() {
			if joined, err = userdirs.Join(s, a.p.Getenv); err != nil {
				return nil, err
			}
		}
		if joined {
			own = append(own, s)
		}
	}
	return own, nil
}

// choose decides what connects QEMU with the switches of the user's networks where no --via says
// it, and tells why. A user's switch runs programs of that user only, as QEMU is, so it may have
// the guest's memory: vhost-user, unless the command line may need that memory for itself.
func (o *launchOptions) choose(n *nicOptions, files guestFiles) {
	s := &n.spec
	if s.Switch == nil || s.Switch.By != "" {
		return
	}
	s.Switch.By = nic.BySocket
	if s.CheckVhostUser() != nil {
		return // the model, or another flag, asks for something else
	}
	if why := cmp.Or(plainDevice(s.DeviceOptions), o.mayShare(files)); why != nil {
		o.tell(s.Switch.Name, why)
		return
	}
	s.Switch.By, n.chosen = nic.ByVhostUser, true
	o.notices = append(o.notices, fmt.Sprintf("network %s: by vhost-user: its switch has the guest's memory "+
		"(--via socket avoids that)", s.Switch.Name))
}

// plainDevice returns nil if a device with these options works by vhost-user too, or why it may
// not.
func plainDevice(options map[string]string) error {
	for key := range options {
		if !slices.Contains(plainOptions, key) {
			return fmt.Errorf("--device-opt %s may need a socket", key)
		}
	}
	return nil
}

// plainOptions are the options of QEMU's device that do not depend on what serves its rings.
var plainOptions = []string{
	"rx_queue_size", "tx_queue_size", "romfile", "bus", "addr", "bootindex", "mrg_rxbuf", "mq", "vectors", "speed",
	"duplex", "csum", "guest_csum", "gso", "host_tso4", "host_tso6", "guest_tso4", "guest_tso6", "host_mtu",
}

// tell notes that a NIC on a user's network is on a socket.
func (o *launchOptions) tell(network string, why error) {
	o.notices = append(o.notices,
		fmt.Sprintf("network %s: by a socket, which is slower than vhost-user: %v", network, why))
}

// mayShare returns nil if the guest may share its memory, or why it had better not.
func (o *launchOptions) mayShare(files guestFiles) error {
	if len(o.unread) > 0 {
		return fmt.Errorf("%s was not read, and may say where the guest's memory is", o.unread[0])
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil || !anySize.Match(limits) {
		return errors.New("the size of files is limited, and so is that of shared memory (ulimit -f)")
	}
	return launch.MayShare(launch.VMM(o.vmm), o.argv, o.guest, files.target)
}

// anySize matches the limits of a process that may write files of any size (proc_pid_limits(5)).
var anySize = regexp.MustCompile(`(?m)^Max file size +unlimited `)

// makeNICs makes the NICs. If that fails with memory shared that nobody has asked to share, it
// makes them without.
func (a *app) makeNICs(m *backend.Maker, o *launchOptions, specs []nic.Spec) (*backend.Launch, error) {
	made, err := a.makeOnce(m, o, specs)
	if err == nil || !o.unshare(specs, err) {
		return made, err
	}
	return a.makeOnce(m, o, specs)
}

// unshare puts NICs that choose has put on vhost-user on sockets instead, and reports whether there
// were any.
func (o *launchOptions) unshare(specs []nic.Spec, why error) (changed bool) {
	o.notices = nil
	for i := range o.nics {
		n := &o.nics[i]
		if !n.chosen {
			continue
		}
		n.chosen, changed = false, true
		sw := *specs[i].Switch
		sw.By = nic.BySocket
		specs[i].Switch = &sw
		if n.auto {
			specs[i].Queues = 1
		}
		o.tell(sw.Name, why)
	}
	return changed
}

func (a *app) makeOnce(m *backend.Maker, o *launchOptions, specs []nic.Spec) (*backend.Launch, error) {
	made, err := m.PlanLaunch(context.Background(), specs...)
	if err != nil {
		return nil, err
	}
	if o.wait {
		made.AwaitForwarding()
	}
	// Report errors in the command line before a device is made.
	if _, err := o.command(made, a.monitorPath(o)); err != nil {
		return nil, err
	}
	return made, made.Make(context.Background())
}
