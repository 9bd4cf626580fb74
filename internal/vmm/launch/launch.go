// Package launch writes the command line of a VMM that inherits the fds of its NICs. It
// touches nothing: it is told the numbers that the fds will have.
package launch

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
)

// ErrInvalid is what all errors of this package are: what was asked for cannot be, and the
// text says why and what to do.
var ErrInvalid = errors.New("invalid command line")

// Placeholder is the argument in whose place the NICs' arguments go, as often as there are.
const Placeholder = "{vmnet}"

// Bounds. PCI buses have 32 slots, and unix(7) socket paths 107 bytes.
const (
	maxArguments = 4096
	maxNICs      = 32
	maxPorts     = 32
	maxSocket    = 107
	maxString    = 128<<10 - 1 // MAX_ARG_STRLEN of execve(2), without the NUL
)

// DefaultSparePorts is what a Config should have if nobody said anything else.
const DefaultSparePorts = 2

// Config is what the command line is to say.
type Config struct {
	// Guest is QEMU's own part of the command line, as Find has it, with the files that it reads in
	// their places (qemu.Expand); nil: as Find has it, which is nil too for another program.
	Guest []string

	VM    string // the guest's name; empty: that of -name
	Place string // "pci", "pcie" or "mmio"; "auto" or empty: what the machine has

	// SparePorts is how many empty PCI Express root ports the guest gets besides those of its
	// NICs, for what is attached while it runs. Other places need none.
	SparePorts int

	// Monitor is the path of a QMP socket for QEMU to listen on; empty: none is added. As any
	// -qmp does, it takes QEMU's default human monitor away (-monitor brings it back).
	Monitor string

	NICs []NIC // at least one
}

// NIC is one NIC of the guest.
type NIC struct {
	Device qmp.NIC // as QEMU gets it. Its own fds count for nothing

	Name      string // the NIC's id within the guest: "net0"
	Interface string // the device on the host
	Type      string // "tap", "macvtap", "ipvtap", "socket"
	Source    string // the bridge, lower or switch that it is on
	MTU       int    // of the device, in bytes

	Queues []int // numbers of the fds in the VMM, 3 or higher; of a socket its one end
	Vhosts []int // none, or one for each queue
	Netns  int   // the netns that the device is in, kept open for whoever looks for it; -1: none
	Label  int   // what tells whoever looks what the NIC is, kept open; 0: none
}

// Command is what to execute.
type Command struct {
	Argv []string
	Env  []string // to be added: VMNET_ARGS and VMNET_JSON
}

// Command adds the NICs to a VMM's command line, whose first element is the program.
//
// QEMU's gets its arguments at the end, behind the wrappers that [Find] knows, that of another
// program nothing; an argument that is exactly [Placeholder] says where they go instead. VMNET_ARGS
// has them in any case, quoted for a shell (eval "set -- $VMNET_ARGS"), and VMNET_JSON has the same
// as data.
//
// A -netdev takes away the NIC that QEMU makes if it is told nothing (default_net in QEMU's
// softmmu/vl.c), so that nothing needs to be said about that.
func (c Config) Command(argv []string) (Command, error) {
	if err := c.validate(argv); err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	guest := c.Guest
	if guest == nil {
		guest, _ = Find(VMMAuto, argv, nil) // which whoever must be sure of the guest has asked before
	}
	name, err := GuestName(c.VM, guest)
	if err != nil {
		return Command{}, err
	}
	args, err := c.arguments(name, guest, argv)
	if err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	command := Command{Argv: insert(argv, args, guest != nil), Env: c.environment(name, args)}
	for _, s := range slices.Concat(command.Argv, command.Env) {
		if len(s) > maxString || strings.Contains(s, "\x00") {
			return Command{}, fmt.Errorf("%w: %.40q... is longer than the %d bytes that the kernel takes, or holds a NUL", ErrInvalid, s, maxString)
		}
	}
	return command, nil
}

// arguments are those that are ours. guest is QEMU's own part of argv; nil where it is not known.
func (c Config) arguments(name string, guest, argv []string) (args []string, err error) {
	if guest != nil && qemu.Parse(guest).Name == "" {
		args = append(args, "-name", "guest="+qemu.Escape(name))
	}
	if c.Monitor != "" {
		args = append(args, "-qmp", "unix:"+qemu.Escape(c.Monitor)+",server=on,wait=off")
	}
	p, err := c.placement(guest, argv)
	if err != nil {
		return nil, err
	}
	for _, n := range c.NICs {
		device, port, err := p.place(n.Device)
		if err != nil {
			return nil, fmt.Errorf("NIC %s: %w", n.Name, err)
		}
		nic, err := device.Args(n.Queues, n.Vhosts)
		if err != nil {
			return nil, fmt.Errorf("NIC %s: %w", n.Name, err)
		}
		args = slices.Concat(args, port, nic)
	}
	spare, err := p.spare(c.SparePorts)
	return append(args, spare...), err
}

// insert puts args where they belong and leaves argv's other elements as they are. atEnd is for
// QEMU's.
func insert(argv, args []string, atEnd bool) []string {
	if i := placeholder(argv); i > 0 {
		return slices.Concat(argv[:i], args, argv[i+1:])
	}
	if atEnd {
		return slices.Concat(argv, args)
	}
	return slices.Clone(argv)
}

// placeholder is the index of the first one; 0: there is none.
func placeholder(argv []string) int { return slices.Index(argv[1:], Placeholder) + 1 }

// HasMonitor reports whether a QEMU's command line, as Find has it, has a QMP monitor that vmnet
// can use.
func HasMonitor(guest []string) bool { return len(parse(guest).Monitors) > 0 }

// parse reads QEMU's command line; of another program's nothing is known.
func parse(guest []string) qemu.CmdLine {
	if len(guest) == 0 || !qemu.IsQEMU(guest[0]) {
		return qemu.CmdLine{}
	}
	return qemu.Parse(guest)
}

// GuestName is what the guest is called: vm, or where that is empty by QEMU's -name. Its errors
// are that there is none, or that there are two. guest is as Find has it.
func GuestName(vm string, guest []string) (string, error) {
	named := parse(guest).Name
	switch {
	case vm == "" && named == "":
		return "", fmt.Errorf("%w: the guest has no name (give it one with --vm NAME, or QEMU's -name guest=NAME)", ErrInvalid)
	case vm == "":
		return named, nil
	case named != "" && named != vm:
		return "", fmt.Errorf("%w: the guest has two names, %q by --vm and %q by QEMU's -name (leave one out)", ErrInvalid, vm, named)
	}
	return vm, nil
}
