package qmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

// DefaultModel is the NIC model that guests drive fastest.
const DefaultModel = "virtio-net-pci"

// maxQueues is MAX_TAP_QUEUES of QEMU's net/tap.c.
const maxQueues = 1024

// Backend is a type of netdev over ready fds (NetClientDriver in qapi/net.json).
type Backend string

const (
	// Tap is queues of a tap or macvtap.
	Tap Backend = "tap"
	// Dgram is one end of an AF_UNIX datagram socketpair, one frame in each datagram, without a
	// vnet header. QEMU has it since 7.2.
	Dgram Backend = "dgram"
	// Socket is the same for any QEMU, or one end of an AF_UNIX stream socketpair, on which each
	// frame follows its length: QEMU sees by the fd what socket it is (net_socket_fd_init in
	// net/socket.c). The netdev "stream" of QEMU 7.2 does not connect a stream by an fd.
	Socket Backend = "socket"
	// VhostUser is a socket on which QEMU listens: a backend, such as a userspace switch, connects
	// to it and serves the guest's rings itself, in the guest's memory. See [Conn.ListenSteps].
	VhostUser Backend = "vhost-user"
)

// NIC is what [Conn.Plug] gives QEMU: a netdev over open files, and the device that the guest sees.
// It is data: [Files] has the files, as many as the NIC says.
type NIC struct {
	ID      string  // of the device: "vmnet-net0"
	Netdev  string  // id of the netdev; empty: NetdevID(ID)
	Backend Backend // empty: Tap

	Queues int  // how many queues the tap, macvtap or VhostUser has, at least 1; a socket has 1
	Vhost  bool // each queue has a vhost file of its own
	Netns  bool // QEMU keeps the netns that the interface is in
	Label  bool // QEMU keeps the NIC's label

	// Socket is the path on which QEMU listens for the backend of a VhostUser; empty for others.
	Socket string

	// LinkDown is that QEMU drops the frames of both directions from the start, and the driver sees
	// no carrier, until SetLink.
	LinkDown bool

	Model   string            // QEMU's device model; empty: DefaultModel
	MAC     net.HardwareAddr  // the guest's; nil: QEMU chooses
	HostMTU int               // the MTU in bytes that a virtio guest sees and may not exceed; 0: none
	Bus     string            // where to plug, from FreePort; empty: QEMU chooses
	Addr    string            // the slot on Bus, from FreePort; empty: QEMU chooses
	Options map[string]string // more properties, as on a command line: rx_queue_size=512, mrg_rxbuf=off

	typed map[string]any // Options with the types that TypeOptions has read
}

// Files are the open files of a NIC, which QEMU gets copies of. The functions of this package only
// read them: they stay with their owner, who may close them once the NIC is plugged.
type Files struct {
	Queues []*os.File // of one tap or macvtap, in the order of the queues; or one end of a socket
	Vhosts []*os.File // none, or one of /dev/vhost-net for each queue

	// Netns is the network namespace of a macvtap; nil for none. QEMU does not use it. A process
	// that looks for the interface finds it among QEMU's files.
	Netns *os.File

	// Label is a file whose name is a record of the NIC; nil for none. QEMU does not use it.
	Label *os.File
}

// All returns the files that are open.
func (f *Files) All() []*os.File {
	all := slices.Concat(f.Queues, f.Vhosts)
	for _, one := range []*os.File{f.Netns, f.Label} {
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// NetdevID returns the id of the netdev that belongs to the device of that id. QEMU lists neither
// netdevs nor getfd names, so all of them derive from the device's id.
func NetdevID(deviceID string) string { return deviceID + "-netdev" }

// QueueName returns the getfd name of a NIC's i-th queue.
func QueueName(deviceID string, i int) string { return deviceID + "-q" + strconv.Itoa(i) }

// VhostName returns the getfd name of a NIC's i-th vhost file.
func VhostName(deviceID string, i int) string { return deviceID + "-vhost" + strconv.Itoa(i) }

// NetnsName returns the getfd name of a NIC's network namespace.
func NetnsName(deviceID string) string { return deviceID + "-netns" }

// LabelName returns the getfd name of a NIC's label.
func LabelName(deviceID string) string { return deviceID + "-label" }

// WithoutKVM returns the options that a VhostUser needs in a QEMU that runs its guest without KVM:
// QEMU 7.2 crashes there once the guest's driver uses MSI-X.
func WithoutKVM() map[string]string { return map[string]string{"vectors": "0"} }

// ChardevID returns the id of the chardev by which the device of that id, a VhostUser, is served.
func ChardevID(deviceID string) string { return deviceID + "-chardev" }

// ownProperties are set by other fields of NIC than Options.
var ownProperties = []string{"driver", "id", "netdev", "mac", "bus", "addr", "mq", "host_mtu"}

// Validate checks what can be checked without QEMU and without the files.
func (n NIC) Validate() error { return n.validate(n.Queues, n.vhosts()) }

// check compares the files with what the NIC says of them.
func (f *Files) check(n NIC) error {
	err := n.validate(n.queuesOver(len(f.Queues)), len(f.Vhosts))
	switch {
	case err != nil:
		return err
	case len(f.Queues) != n.QueueFiles() || len(f.Vhosts) != n.vhosts() || (f.Netns != nil) != n.Netns ||
		(f.Label != nil) != n.Label:
		return fmt.Errorf("%s: the files are not those of a NIC of %d queues (vhost %v, netns %v, label %v)",
			n.ID, n.Queues, n.Vhost, n.Netns, n.Label)
	case slices.Contains(f.Queues, nil), slices.Contains(f.Vhosts, nil):
		return fmt.Errorf("%s: a queue or vhost file is nil", n.ID)
	}
	return nil
}

// QueueFiles returns how many queues are files.
func (n NIC) QueueFiles() int {
	if n.backend() == VhostUser {
		return 0
	}
	return n.Queues
}

// queuesOver returns how many queues the NIC has over that many files: a VhostUser has its queues
// in the guest's memory.
func (n NIC) queuesOver(files int) int {
	if n.backend() == VhostUser {
		return n.Queues
	}
	return files
}

// vhosts returns how many vhost files there are.
func (n NIC) vhosts() int {
	if n.Vhost {
		return n.Queues
	}
	return 0
}

// validate checks a NIC that has so many queues and vhost files.
func (n NIC) validate(queues, vhosts int) error {
	switch {
	case !wellFormed(n.ID):
		return fmt.Errorf("device id %q: a letter, then letters, digits, '-', '.' or '_'", n.ID)
	case !wellFormed(n.netdev()):
		return fmt.Errorf("netdev id %q: a letter, then letters, digits, '-', '.' or '_'", n.Netdev)
	case queues < 1 || queues > maxQueues:
		return fmt.Errorf("%s has %d queues: 1 to %d are possible", n.ID, queues, maxQueues)
	case vhosts != 0 && vhosts != queues:
		return fmt.Errorf("%s has %d queues and %d vhost fds: each queue needs one, or none has", n.ID, queues, vhosts)
	case !slices.Contains([]Backend{Tap, Dgram, Socket, VhostUser}, n.backend()):
		return fmt.Errorf("%s: backend %q is not tap, dgram, socket or vhost-user", n.ID, n.Backend)
	case n.backend() == VhostUser && (vhosts > 0 || !n.virtio() || n.Socket == "" || len(n.Socket) > maxSocket):
		return fmt.Errorf("%s: a vhost-user NIC has a virtio model, no vhost fds, and a socket's path "+
			"of 1 to %d bytes: %s", n.ID, maxSocket, n.Socket)
	case n.backend() != Tap && n.backend() != VhostUser && (queues > 1 || vhosts > 0):
		return fmt.Errorf("%s has %d queues and %d vhost fds: a NIC over a socket has one queue and no vhost",
			n.ID, queues, vhosts)
	case queues > 1 && !n.virtio():
		return fmt.Errorf("%s: model %s has one queue, only virtio has more", n.ID, n.model())
	case n.MAC != nil && (len(n.MAC) != 6 || n.MAC[0]&1 != 0):
		return fmt.Errorf("%s: %s is not a unicast Ethernet address", n.ID, n.MAC)
	case n.HostMTU != 0 && !n.virtio():
		return fmt.Errorf("%s: model %s cannot show the guest an MTU, only virtio can", n.ID, n.model())
	case n.HostMTU != 0 && (n.HostMTU < 68 || n.HostMTU > 65535):
		return fmt.Errorf("%s: MTU %d: 68 to 65535 are possible", n.ID, n.HostMTU)
	}
	for name := range n.Options {
		if name == "" || slices.Contains(ownProperties, name) {
			return fmt.Errorf("%s: device property %q is not an option: another setting determines it", n.ID, name)
		}
	}
	return nil
}

// TypeOptions returns n with the types that the model's properties have for its options
// (device-list-properties), so that [Conn.PlugSteps] shows exactly what is sent. Without it that is
// done when device_add is reached.
func (c *Conn) TypeOptions(ctx context.Context, n NIC) (NIC, error) {
	if len(n.Options) == 0 || n.typed != nil {
		return n, nil
	}
	types, err := c.deviceProperties(ctx, n.model())
	if err != nil && !errors.Is(err, ErrDeviceNotFound) {
		// device_add knows aliases of models too, and explains an unknown one better
		return n, err
	}
	n.typed = make(map[string]any, len(n.Options))
	for name, value := range n.Options {
		n.typed[name] = typeValue(name, types[name], value)
	}
	return n, nil
}

// deviceProperties maps the properties of a model to their types (device-list-properties). The
// error matches [ErrDeviceNotFound] if QEMU does not have the model.
func (c *Conn) deviceProperties(ctx context.Context, model string) (map[string]string, error) {
	var list []struct{ Name, Type string }
	err := c.Execute(ctx, "device-list-properties", map[string]any{"typename": model}, &list)
	types := make(map[string]string, len(list))
	for _, p := range list {
		types[p.Name] = p.Type
	}
	return types, err
}

// typeValue turns a command-line value into what a JSON property of that QOM type takes. What does
// not fit stays a string, which QEMU refuses in its own words.
func typeValue(name, qomType, value string) any {
	switch {
	case name == "addr": // listed as int32, but a number means slot*8+function and a string the hexadecimal slot
		return value
	case qomType == "bool":
		switch strings.ToLower(value) {
		case "on", "yes", "true", "y":
			return true
		case "off", "no", "false", "n":
			return false
		}
	case strings.HasPrefix(qomType, "int") || strings.HasPrefix(qomType, "uint") || qomType == "size":
		if i, err := strconv.ParseInt(value, 0, 64); err == nil {
			return i
		}
		if u, err := strconv.ParseUint(value, 0, 64); err == nil {
			return u
		}
	}
	return value
}

// netdevArgs returns the arguments of netdev_add (NetdevTapOptions, NetdevDgramOptions and
// NetdevSocketOptions in qapi/net.json).
func (n NIC) netdevArgs() map[string]any {
	if n.backend() == Dgram {
		local := map[string]any{"type": "fd", "str": QueueName(n.ID, 0)}
		return map[string]any{"type": Dgram, "id": n.netdev(), "local": local}
	}
	args := n.netdevOver(n.names(n.QueueFiles(), QueueName), n.names(n.vhosts(), VhostName))
	if n.Vhost {
		args["vhost"] = true
	}
	return args
}

// netdevOver returns the netdev over fds as QEMU lists them, with colons, as far as it is the same
// in JSON and on a command line. vhostfds turn vhost on.
func (n NIC) netdevOver(fds, vhostfds string) map[string]any {
	switch n.backend() {
	case Dgram:
		return map[string]any{"type": Dgram, "id": n.netdev(), "local.type": "fd", "local.str": fds}
	case Socket:
		return map[string]any{"type": Socket, "id": n.netdev(), "fd": fds}
	case VhostUser:
		return map[string]any{"type": VhostUser, "id": n.netdev(), "chardev": ChardevID(n.ID), "queues": n.Queues}
	}
	args := map[string]any{"type": Tap, "id": n.netdev(), "fds": fds}
	if vhostfds != "" {
		args["vhostfds"] = vhostfds
	}
	return args
}

func (n NIC) names(count int, name func(string, int) string) string {
	names := make([]string, count)
	for i := range names {
		names[i] = name(n.ID, i)
	}
	return strings.Join(names, ":")
}

// deviceArgs returns the arguments of device_add.
func (n NIC) deviceArgs() map[string]any { return n.device(n.Queues) }

func (n NIC) device(queues int) map[string]any {
	args := map[string]any{"driver": n.model(), "id": n.ID, "netdev": n.netdev()}
	if n.MAC != nil {
		args["mac"] = n.MAC.String()
	}
	if n.Bus != "" {
		args["bus"] = n.Bus
	}
	if n.Addr != "" {
		args["addr"] = n.Addr
	}
	if n.HostMTU != 0 {
		args["host_mtu"] = n.HostMTU
	}
	if queues > 1 {
		args["mq"] = true
		if strings.HasPrefix(n.model(), "virtio-net-pci") {
			args["vectors"] = 2*queues + 2 // receive and send of each pair, control, configuration
		}
	}
	for name, value := range n.Options {
		args[name] = value
	}
	maps.Copy(args, n.typed)
	return args
}

func (n NIC) backend() Backend { return cmp.Or(n.Backend, Tap) }

func (n NIC) netdev() string {
	if n.Netdev == "" {
		return NetdevID(n.ID)
	}
	return n.Netdev
}

func (n NIC) model() string {
	if n.Model == "" {
		return DefaultModel
	}
	return n.Model
}

func (n NIC) virtio() bool { return strings.HasPrefix(n.model(), "virtio-net") }

// wellFormed reports whether id_wellformed in QEMU's util/id.c accepts an id; such an id is also
// valid in getfd names.
func wellFormed(id string) bool {
	other := func(r rune) bool { return !isLetter(r) && !strings.ContainsRune("-._0123456789", r) }
	return id != "" && isLetter(rune(id[0])) && !strings.ContainsFunc(id, other)
}

func isLetter(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}
