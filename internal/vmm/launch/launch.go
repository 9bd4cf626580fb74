// Package launch writes the command line of a VMM that inherits the fds of its NICs. It opens
// nothing: the caller supplies the numbers that the fds will have.
package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"vmnet/internal/cli/console"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
)

// ErrInvalid matches all errors of this package: the request is impossible, and the text gives the
// reason and the cure.
var ErrInvalid = errors.New("invalid command line")

// Placeholder is the argument that the NICs' arguments replace. It may occur once.
const Placeholder = "{vmnet}"

// Bounds. PCI buses have 32 slots, and unix(7) socket paths 107 bytes.
const (
	maxArguments = 4096
	maxNICs      = 32
	maxPorts     = 32
	maxSocket    = 107
	maxString    = 128<<10 - 1 // MAX_ARG_STRLEN of execve(2), without the NUL
)

// DefaultSparePorts is the default for Config.SparePorts.
const DefaultSparePorts = 2

// Config is the content of the command line.
type Config struct {
	// Guest is QEMU's own part of the command line, as returned by Find, with the files that it
	// reads expanded (qemu.Expand). If it is nil, Command calls Find, which returns nil for another
	// program.
	Guest []string

	VM    string // the guest's name; empty: from -name
	Place string // "pci", "pcie" or "mmio"; "auto" or empty: by the machine's type

	// SparePorts is the number of empty PCI Express root ports that the guest gets besides those of
	// its NICs, for NICs attached while it runs. Other places need none.
	SparePorts int

	// Monitor is the path of a QMP socket for QEMU to listen on; empty: none is added. Like any
	// -qmp, it removes QEMU's default human monitor (-monitor brings it back).
	Monitor string

	NICs []NIC // at least one
}

// NIC is one NIC of the guest.
type NIC struct {
	Device qmp.NIC // for QEMU's arguments

	Name      string // the NIC's id within the guest: "net0"
	Interface string // the host interface
	Type      string // "tap", "macvtap", "ipvtap", "socket"
	Source    string // the bridge, parent device or switch
	MTU       int    // of the device, in bytes

	// The numbers of the fds in the VMM, 3 or higher. Number sets them.
	Queues []int // of a socket, its one end
	Vhosts []int // none, or one for each queue
	Netns  int   // of the interface's netns, kept open so that it can be found; 0: none
	Label  int   // of the label that describes the NIC, kept open; 0: none
}

// Number sets the numbers of the NIC's fds, as many as its Device has: those of the files that are
// open, which keep their numbers over execve(2), and *next and the numbers after it for files that
// a plan has not opened. It leaves *next behind the last one of these.
func (n *NIC) Number(f *qmp.Files, next *int) {
	number := func(file *os.File) int {
		if file != nil {
			return int(file.Fd())
		}
		*next++
		return *next - 1
	}
	all := func(files []*os.File) (fds []int) {
		for i := range n.Device.QueueFiles() {
			var file *os.File
			if i < len(files) {
				file = files[i]
			}
			fds = append(fds, number(file))
		}
		return fds
	}
	n.Queues = all(f.Queues)
	if n.Device.Vhost {
		n.Vhosts = all(f.Vhosts)
	}
	if n.Device.Netns {
		n.Netns = number(f.Netns)
	}
	if n.Device.Label {
		n.Label = number(f.Label)
	}
}

// Command is what to execute.
type Command struct {
	Argv []string
	Env  []string // additions: VMNET_ARGS and VMNET_JSON
}

// Command adds the NICs to a VMM's command line, whose first element is the program.
//
// QEMU's arguments go to the end of its command line, behind the wrappers that [Find] knows;
// another program gets none. An argument that is exactly [Placeholder] says where they go instead.
// VMNET_ARGS has them in any case, quoted for a shell (eval "set -- $VMNET_ARGS"), and VMNET_JSON
// has the same as data.
//
// A -netdev also keeps QEMU from making its default NIC (default_net in QEMU's softmmu/vl.c), so no
// argument is needed for that.
func (c Config) Command(argv []string) (Command, error) {
	if err := c.validate(argv); err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	guest := c.Guest
	if guest == nil {
		guest, _ = Find(VMMAuto, argv, nil) // callers that must be sure of the guest call Find before
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
			return Command{},
				fmt.Errorf("%w: %.40q... is longer than the %d bytes that the kernel takes, or holds a NUL",
					ErrInvalid, s, maxString)
		}
	}
	return command, nil
}

// arguments returns vmnet's arguments. guest is QEMU's own part of argv; nil if unknown.
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
	shared, err := c.sharedMemory(guest)
	if err != nil {
		return nil, err
	}
	args = append(args, shared...)
	for _, n := range c.NICs {
		device, port, err := p.place(n.Device)
		if err != nil {
			return nil, fmt.Errorf("NIC %s: %w", n.Name, err)
		}
		if isShared(n) && !qemu.SurelyKVM(guest) {
			maps.Copy(device.Options, qmp.WithoutKVM()) // place has copied them
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

func isShared(n NIC) bool { return n.Device.Backend == qmp.VhostUser }

// sharedMemory returns the arguments by which QEMU shares the guest's memory, if a NIC needs that.
func (c Config) sharedMemory(guest []string) ([]string, error) {
	i := slices.IndexFunc(c.NICs, isShared)
	switch {
	case i < 0:
		return nil, nil
	case guest == nil:
		return nil, fmt.Errorf("NIC %s: only a QEMU whose arguments are known shares its memory by vhost-user "+
			"(--via socket)", c.NICs[i].Name)
	}
	args, err := qemu.SharedMemory(guest)
	if err != nil {
		err = fmt.Errorf("NIC %s by vhost-user: %w", c.NICs[i].Name, err)
	}
	return args, err
}

// insert puts args in their place and leaves argv's other elements as they are. atEnd is for QEMU.
func insert(argv, args []string, atEnd bool) []string {
	if i := placeholder(argv); i > 0 {
		return slices.Concat(argv[:i], args, argv[i+1:])
	}
	if atEnd {
		return slices.Concat(argv, args)
	}
	return slices.Clone(argv)
}

// placeholder returns the index of the first Placeholder; 0: there is none.
func placeholder(argv []string) int { return slices.Index(argv[1:], Placeholder) + 1 }

// HasMonitor reports whether a QEMU's command line, as returned by Find, has a QMP monitor that
// vmnet can use.
func HasMonitor(guest []string) bool { return len(parse(guest).Monitors) > 0 }

// parse parses QEMU's command line; for another program the result is empty.
func parse(guest []string) qemu.CmdLine {
	if len(guest) == 0 || !qemu.IsQEMU(guest[0]) {
		return qemu.CmdLine{}
	}
	return qemu.Parse(guest)
}

// GuestName returns the guest's name: vm, or if that is empty, the name in QEMU's -name. It is an
// error if there is no name, or if there are two. guest is as returned by Find.
func GuestName(vm string, guest []string) (string, error) {
	named := parse(guest).Name
	switch {
	case vm == "" && named == "":
		return "", fmt.Errorf("%w: the guest has no name (give it one with --vm NAME, or QEMU's -name guest=NAME)",
			ErrInvalid)
	case vm == "":
		return named, nil
	case named != "" && named != vm:
		return "",
			fmt.Errorf("%w: the guest has two names, %q by --vm and %q by QEMU's -name (leave one out)",
				ErrInvalid, vm, named)
	}
	return vm, nil
}

// validate checks everything that qmp.NIC.Args does not check.
func (c Config) validate(argv []string) error {
	switch {
	case len(argv) == 0 || argv[0] == "":
		return errors.New("there is no program to run (give it after --)")
	case len(argv) > maxArguments:
		return fmt.Errorf("%d arguments: at most %d are possible", len(argv), maxArguments)
	case placeholder(argv) > 0 && slices.Contains(argv[placeholder(argv)+1:], Placeholder):
		return fmt.Errorf("%s occurs twice: the NICs can go to one place (leave one out)", Placeholder)
	case c.Place != "" && !slices.Contains(Places(), c.Place):
		return fmt.Errorf("place %q: want %s", c.Place, strings.Join(Places(), ", "))
	case c.SparePorts < 0 || c.SparePorts > maxPorts:
		return fmt.Errorf("%d spare ports: 0 to %d are possible", c.SparePorts, maxPorts)
	case len(c.Monitor) > maxSocket:
		return fmt.Errorf("the monitor's path %s is longer than the %d bytes of a socket's (choose a shorter one)",
			c.Monitor, maxSocket)
	case strings.Contains(c.Monitor, "="):
		return fmt.Errorf("the monitor's path %s holds a '=', which QEMU takes for an option (choose another one)",
			c.Monitor)
	case len(c.NICs) == 0 || len(c.NICs) > maxNICs:
		return fmt.Errorf("%d NICs: 1 to %d are possible", len(c.NICs), maxNICs)
	}
	return errors.Join(c.uniqueNames(), c.uniqueFDs())
}

// Places are the values of Config.Place.
func Places() []string {
	places := []string{string(qemu.PlaceAuto)}
	for _, p := range qemu.Places {
		places = append(places, string(p))
	}
	return places
}

func (c Config) uniqueNames() error {
	seen := map[string]bool{}
	for _, n := range c.NICs {
		if n.Name == "" || seen[n.Name] {
			return fmt.Errorf("two NICs are called %q, or one has no name (give each its own --nic)", n.Name)
		}
		seen[n.Name] = true
	}
	return nil
}

// uniqueFDs also refuses the standard streams, since a forgotten number is 0.
func (c Config) uniqueFDs() error {
	seen := map[int]bool{}
	for _, n := range c.NICs {
		fds := slices.Concat(n.Queues, n.Vhosts)
		for _, fd := range []int{n.Netns, n.Label} {
			if fd != 0 {
				fds = append(fds, fd)
			}
		}
		for _, fd := range fds {
			if fd < 3 || seen[fd] {
				return fmt.Errorf("NIC %s: file descriptor %d is a standard stream or used twice", n.Name, fd)
			}
			seen[fd] = true
		}
	}
	return nil
}

// description is the content of VMNET_JSON. Its keys are stable.
type description struct {
	VM   string    `json:"vm"`
	NICs []nicJSON `json:"nics"`
}

type nicJSON struct {
	ID        string `json:"id"`
	Interface string `json:"interface"`
	Type      string `json:"type"`
	Source    string `json:"source"`
	MAC       string `json:"mac"` // empty: the VMM chooses
	MTU       int    `json:"mtu"`
	Queues    []int  `json:"queues"`
	Vhosts    []int  `json:"vhosts"`
	Netns     *int   `json:"netns"` // null: none
	NetdevID  string `json:"netdev_id"`
	DeviceID  string `json:"device_id"`
}

// environment describes the NICs to programs that are not QEMU.
func (c Config) environment(name string, args []string) []string {
	d := description{VM: name}
	for _, n := range c.NICs {
		one := nicJSON{
			ID: n.Name, Interface: n.Interface, Type: n.Type, Source: n.Source, MAC: n.Device.MAC.String(), MTU: n.MTU,
			Queues: append([]int{}, n.Queues...), Vhosts: append([]int{}, n.Vhosts...), // [], not null
			NetdevID: netdevID(n.Device), DeviceID: n.Device.ID,
		}
		if n.Netns != 0 {
			one.Netns = &n.Netns
		}
		d.NICs = append(d.NICs, one)
	}
	text, _ := json.Marshal(d) // strings and numbers always marshal
	return []string{"VMNET_ARGS=" + console.Quote(args), "VMNET_JSON=" + string(text)}
}
