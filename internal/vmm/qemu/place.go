package qemu

import (
	"slices"
	"strings"
)

// Place is the kind of slot that a machine has for a NIC of its command line.
type Place string

// Places.
const (
	// PlacePCI is a slot of a PCI bus that QEMU chooses. It is also the default for an unknown
	// machine, since nearly all machines have such a bus.
	PlacePCI Place = "pci"
	// PlacePCIe is a PCI Express root port on the bus pcie.0. A device on that bus itself
	// cannot be unplugged while the guest runs (QEMU's docs/pcie.txt).
	PlacePCIe Place = "pcie"
	// PlaceMMIO is a virtio-mmio transport, of a machine without PCI.
	PlaceMMIO Place = "mmio"
	// PlaceCCW is channel I/O, of s390x.
	PlaceCCW Place = "ccw"
	// PlaceUSB is a USB controller, of a board without PCI and virtio.
	PlaceUSB Place = "usb"
	// PlaceISA is an ISA bus, of a PC without PCI.
	PlaceISA Place = "isa"
	// PlaceNone is no place: the board has only its built-in NICs.
	PlaceNone Place = "none"
)

// PlaceAuto is the place that suits the machine. An empty Place means the same.
const PlaceAuto Place = "auto"

// Places are the places that a user can choose.
var Places = []Place{PlacePCI, PlacePCIe, PlaceMMIO, PlaceCCW, PlaceUSB}

// Of decides for a command line.
func (p Place) Of(argv []string) Place {
	if p == "" || p == PlaceAuto {
		return MachineOf(argv).Place
	}
	return p
}

// Model returns the NIC model with the best performance there; empty for PlaceNone.
func (p Place) Model() string {
	switch p {
	case PlaceMMIO:
		return "virtio-net-device"
	case PlaceCCW:
		return "virtio-net-ccw"
	case PlaceUSB:
		return "usb-net"
	case PlaceISA:
		return "ne2k_isa"
	case PlaceNone:
		return ""
	}
	return "virtio-net-pci"
}

// Machine describes the machine of a command line.
type Machine struct {
	Type  string // "q35", "pc-i440fx-7.2"; empty: not given, and the program has no default
	Place Place
}

// defaultMachines are the machines that QEMU starts by default, by architecture (is_default of
// QEMU's MachineClass). arm and aarch64 have none.
var defaultMachines = map[string]string{
	"x86": "pc", "s390x": "s390-ccw-virtio", "ppc64": "pseries", "ppc": "g3beige", "loongarch64": "virt",
	"riscv64": "spike", "riscv32": "spike",
	"m68k": "mcf5208evb", "alpha": "clipper", "hppa": "hppa", "or1k": "or1k-sim", "sh4": "shix",
}

// boards are the machines of QEMU 7.2 by architecture, for architectures where not all have PCI. A
// name may have a * at either end; the first match counts. Other machines have PCI. On sbsa-ref a
// root port does not start: it has no MSI-X.
var boards = map[string][]struct {
	place Place
	names string
}{
	"x86": {{PlaceISA, "isapc"}},
	"aarch64": {
		{PlacePCIe, "virt virt-*"},
		{PlaceMMIO, "vexpress-* xlnx-versal-virt"},
		{PlacePCI, "versatile* realview-eb* mcimx7d-sabre sbsa-ref"},
		{
			PlaceUSB,
			"raspi* orangepi-pc sabrelite mcimx6ul-evk imx25-pdk npcm750-evb quanta-* kudo-bmc mori-bmc *-bmc ast2* fby35* g220a-bmc fp5280g2-bmc " +
				"smdkc210 nuri xilinx-zynq-a9 xlnx-zcu102 akita borzoi spitz terrier mainstone z2",
		},
		{PlaceNone, "*"},
	},
	"riscv64": {{PlacePCIe, "virt virt-*"}, {PlaceNone, "*"}},
	"or1k":    {{PlacePCI, "virt virt-*"}, {PlaceNone, "*"}}, // this and the next have no pcie-root-port
	"xtensa":  {{PlacePCI, "virt"}, {PlaceNone, "*"}},
	"m68k":    {{PlaceMMIO, "virt virt-*"}, {PlaceNone, "*"}},
	"s390x":   {{PlaceCCW, "*"}},
	"ppc64":   {{PlaceNone, "ref405ep virtex-ml507"}},
	"sh4":     {{PlacePCI, "r2d"}, {PlaceNone, "*"}},
	"mips":    {{PlacePCIe, "loongson3-virt"}, {PlaceNone, "mipssim magnum pica61"}},
	"none":    {{PlaceNone, "*"}},
}

// sameBoards maps an architecture to one with the same machines, or to "none" for no NICs on a bus.
var sameBoards = map[string]string{
	"arm": "aarch64", "riscv32": "riscv64", "ppc": "ppc64", "ppc64le": "ppc64", "sh4eb": "sh4", "xtensaeb": "xtensa",
	"mipsel": "mips", "mips64": "mips",
	"mips64el": "mips", "microblaze": "none", "microblazeel": "none", "nios2": "none", "avr": "none", "rx": "none",
	"tricore": "none", "cris": "none",
}

// placeIn knows types with their versions ("pc-q35-7.2") and distributions' own names
// ("pc-q35-rhel9.4.0", "ubuntu-q35").
func placeIn(machine string, pcie bool, arch string) Place {
	family, _, _ := strings.Cut(machine, "-")
	switch {
	case family == "microvm" && !pcie:
		return PlaceMMIO
	case machine == "", machine == "none" && arch != "": // QEMU refuses it
		return PlacePCI
	}
	if same, ok := sameBoards[arch]; ok {
		arch = same
	}
	for _, b := range boards[arch] {
		if slices.ContainsFunc(strings.Fields(b.names), func(name string) bool { return fits(machine, name) }) {
			return b.place
		}
	}
	if strings.Contains(machine, "q35") || family == "virt" || family == "microvm" {
		return PlacePCIe
	}
	return PlacePCI
}

// Note returns a hint about hot plug on this machine; empty if there is none. The ACPI tables of
// microvm grant no PCI Express hot plug (_OSC without ExtendedConfig): Linux uses the root ports'
// native hot plug only with a parameter on its command line.
func (m Machine) Note() string {
	if family, _, _ := strings.Cut(m.Type, "-"); family == "microvm" && m.Place == PlacePCIe {
		return "a Linux guest on microvm notices NICs that come and go while it runs " +
			"only with pcie_ports=native on its command line"
	}
	return ""
}

// fits reports whether a machine matches a name, which may have a * at either end.
func fits(machine, name string) bool {
	switch start, end := strings.HasPrefix(name, "*"), strings.HasSuffix(name, "*"); {
	case start && end:
		return strings.Contains(machine, strings.Trim(name, "*"))
	case start:
		return strings.HasSuffix(machine, name[1:])
	case end:
		return strings.HasPrefix(machine, name[:len(name)-1])
	}
	return machine == name
}
