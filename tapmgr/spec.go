package tapmgr

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmnet/bridge"
)

// Target names the guest that a NIC belongs to, and how to reach its VMM.
type Target struct {
	VM  string // the guest's name, as in QEMU's -name guest=
	QMP string // its monitor's socket; empty: read from its command line
	PID int    // its process; 0: the one of that name
}

// Spec says what NIC a guest should get. It is data: nothing of it exists
// before Attach.
type Spec struct {
	Target
	NIC           string            // id within the guest, [a-z0-9_]{1,12}; empty means net0
	Bridge        string            // the bridge that the tap becomes a port of
	MAC           net.HardwareAddr  // of the guest's side; nil means the one that DefaultMAC gives
	MTU           int               // bytes, told to the guest; 0 means the bridge's
	Queues        int               // queue pairs; 0 means 1, QueuesAuto the number of vCPUs
	Vhost         Vhost             // empty means auto
	Model         string            // QEMU's device; empty means virtio-net-pci
	DeviceOptions map[string]string // further properties of the device
}

// QueuesAuto asks for a queue pair per vCPU, at most MaxAutoQueues.
const QueuesAuto = -1

// Limits of a Spec.
const (
	MaxAutoQueues = 8
	MaxQueues     = 256 // IFF_MULTI_QUEUE's own (MAX_TAP_QUEUES)
	MaxVMName     = 100 // bytes, so that the alias holds it
	maxOptions    = 32
	minMTU        = 68 // the least that IPv4 works with (RFC 791), and virtio-net's
	maxMTU        = 65535
)

// Vhost says whether the kernel's vhost-net moves the frames.
type Vhost string

// VhostAuto uses vhost-net where it can be had.
const (
	VhostAuto Vhost = "auto"
	VhostOn   Vhost = "on"
	VhostOff  Vhost = "off"
)

const defaultModel = "virtio-net-pci"

var (
	nicID    = regexp.MustCompile(`^[a-z0-9_]{1,12}$`)
	modelID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	optionID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)
)

// ownOptions are device properties that the Spec or the hand-over sets.
var ownOptions = map[string]string{
	"driver": "--model", "id": "--nic", "netdev": "", "mac": "--mac",
	"mq": "--queues", "vectors": "--queues", "host_mtu": "--mtu",
}

// withDefaults fills in what an empty field means, save what depends on the guest.
func (s Spec) withDefaults() Spec {
	if s.NIC == "" {
		s.NIC = "net0"
	}
	if s.MAC == nil {
		s.MAC = DefaultMAC(s.VM, s.NIC)
	}
	if s.Queues == 0 {
		s.Queues = 1
	}
	if s.Vhost == "" {
		s.Vhost = VhostAuto
	}
	if s.Model == "" {
		s.Model = defaultModel
	}
	return s
}

// Validate checks the Spec alone; it touches neither kernel nor VMM. Its error
// Is ErrInvalid.
func (s Spec) Validate() error {
	d := s.withDefaults()
	return in(ErrInvalid, cmp.Or(ValidVM(d.VM), ValidNIC(d.NIC), d.validateHost(), d.validateDevice()))
}

// ValidVM checks a guest's name.
func ValidVM(name string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	switch {
	case name == "":
		return fmt.Errorf("no guest is named (--vm)")
	case len(name) > MaxVMName:
		return fmt.Errorf("guest name of %d bytes: at most %d fit", len(name), MaxVMName)
	case strings.ContainsFunc(name, bad):
		return fmt.Errorf("guest name %q: want printable UTF-8 text", name)
	}
	return nil
}

// ValidNIC checks a NIC's id.
func ValidNIC(id string) error {
	if !nicID.MatchString(id) {
		return fmt.Errorf("NIC id %q: want 1 to 12 of a-z, 0-9 and _", id)
	}
	return nil
}

func (s Spec) validateHost() error {
	switch {
	case s.Bridge == "":
		return fmt.Errorf("no bridge is named (--bridge)")
	case !bridge.ValidName(s.Bridge):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without blanks, '/', ':' or '%%'", s.Bridge)
	case len(s.MAC) != 6 || s.MAC[0]&1 != 0 || s.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("MAC %s: want 6 bytes, neither multicast nor zero", s.MAC)
	case s.MAC[0] == hostMACByte:
		return fmt.Errorf("MAC %s: addresses that begin with fe are those of the host's side", s.MAC)
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", s.MTU, minMTU, maxMTU)
	case s.Vhost != VhostAuto && s.Vhost != VhostOn && s.Vhost != VhostOff:
		return fmt.Errorf("vhost %q: want auto, on or off", s.Vhost)
	case s.Queues != QueuesAuto && (s.Queues < 1 || s.Queues > MaxQueues):
		return fmt.Errorf("%d queues: want 1 to %d, or auto", s.Queues, MaxQueues)
	}
	return nil
}

func (s Spec) validateDevice() error {
	if !modelID.MatchString(s.Model) {
		return fmt.Errorf("model %q: want the name of a QEMU device such as %s", s.Model, defaultModel)
	}
	if !s.virtio() {
		switch {
		case s.Queues != 1 && s.Queues != QueuesAuto:
			return fmt.Errorf("model %s has one queue: %d need a virtio model", s.Model, s.Queues)
		case s.Vhost == VhostOn:
			return fmt.Errorf("model %s cannot use vhost-net: only virtio models can", s.Model)
		case s.MTU != 0:
			return fmt.Errorf("model %s cannot be told an MTU: only virtio models can", s.Model)
		}
	}
	if len(s.DeviceOptions) > maxOptions {
		return fmt.Errorf("%d device options: at most %d", len(s.DeviceOptions), maxOptions)
	}
	for _, k := range slices.Sorted(maps.Keys(s.DeviceOptions)) {
		flag, own := ownOptions[k]
		switch {
		case own && flag != "":
			return fmt.Errorf("device option %q is set by %s", k, flag)
		case own:
			return fmt.Errorf("device option %q is set by vmnet", k)
		case !optionID.MatchString(k):
			return fmt.Errorf("device option %q: want the name of a property", k)
		case len(s.DeviceOptions[k]) > 255:
			return fmt.Errorf("device option %s: a value of %d bytes", k, len(s.DeviceOptions[k]))
		}
	}
	return nil
}

// virtio tells whether the model is one of virtio's, which alone have queues,
// vhost and an MTU.
func (s Spec) virtio() bool { return strings.HasPrefix(s.Model, "virtio-net") }
