package qemu

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Place is where a machine has room for a NIC of its command line.
type Place string

// Places.
const (
	// PlacePCI is a slot of a PCI bus that QEMU chooses. It is also the answer where
	// nothing is known, since nearly all machines have such a bus.
	PlacePCI Place = "pci"
	// PlacePCIe is a PCI Express root port on the bus pcie.0. A device on that bus itself
	// cannot be unplugged while the guest runs (QEMU's docs/pcie.txt).
	PlacePCIe Place = "pcie"
	// PlaceMMIO is a virtio-mmio transport, of a machine without PCI.
	PlaceMMIO Place = "mmio"
)

// PlaceAuto is what the machine has; so is an empty Place.
const PlaceAuto Place = "auto"

// Of decides for a command line.
func (p Place) Of(argv []string) Place {
	if p == "" || p == PlaceAuto {
		return MachineOf(argv).Place
	}
	return p
}

// Machine is what a command line says about the machine.
type Machine struct {
	Type  string // "q35", "pc-i440fx-7.2"; empty: none is named, and the program has no default
	Place Place
}

// MachineOf reads -machine and -M, which QEMU merges: of each property the last one counts
// (machine_opts_dict in QEMU's softmmu/vl.c). A file given by -readconfig is not read.
func MachineOf(argv []string) Machine {
	o := options{}
	for opt, value := range valued(argv) {
		if opt == "machine" || opt == "M" {
			maps.Copy(o, parseOptions(value, "type"))
		}
	}
	arch := architecture(argv)
	if o["type"] == "" && arch == "x86" {
		o["type"] = "pc"
	}
	return Machine{Type: o["type"], Place: placeIn(o["type"], o["pcie"] == "on", arch)}
}

// architecture is what the program emulates; qemu-kvm and kvm run guests of the host's kind.
func architecture(argv []string) string {
	if len(argv) == 0 || !IsQEMU(argv[0]) {
		return ""
	}
	name, named := strings.CutPrefix(filepath.Base(argv[0]), "qemu-system-")
	switch {
	case !named && runtime.GOARCH == "amd64", strings.HasPrefix(name, "x86_64"), strings.HasPrefix(name, "i386"):
		return "x86"
	case !named:
		return runtime.GOARCH
	}
	return name
}

// placeIn knows types with their versions ("pc-q35-7.2") and distributions' own names
// ("pc-q35-rhel9.4.0", "ubuntu-q35").
func placeIn(machine string, pcie bool, arch string) Place {
	family, _, _ := strings.Cut(machine, "-")
	switch {
	case family == "microvm" && !pcie:
		return PlaceMMIO
	case strings.Contains(machine, "q35"), machine == "sbsa-ref":
		return PlacePCIe
	case family == "virt" && arch == "m68k":
		return PlaceMMIO
	case family == "virt": // of aarch64, arm, riscv64, loongarch64
		return PlacePCIe
	}
	// microvm,pcie=on is among these: no firmware prepares its root ports, so that a guest
	// does not see what is plugged into one.
	return PlacePCI
}

// Taken are the names that a command line uses.
type Taken struct {
	IDs     map[string]bool // of devices, netdevs and all else that has one
	Chassis map[uint8]bool  // numbers of root ports, switches and bridges
}

// ReadTaken looks for id=, chassis= and chassis_nr= in all arguments, whatever
// option they belong to, also where they are written as JSON.
func ReadTaken(argv []string) Taken {
	t := Taken{IDs: map[string]bool{}, Chassis: map[uint8]bool{}}
	for _, arg := range argv {
		o := parseOptions(arg, "")
		if strings.HasPrefix(arg, "{") {
			o = parseJSON(arg)
		}
		if o["id"] != "" {
			t.IDs[o["id"]] = true
		}
		for _, key := range []string{"chassis", "chassis_nr"} {
			if n, err := strconv.ParseUint(o[key], 0, 8); err == nil {
				t.Chassis[uint8(n)] = true
			}
		}
	}
	return t
}

// parseJSON reads the form that -device and -netdev also take; what is none is empty.
func parseJSON(arg string) options {
	var properties map[string]any
	_ = json.Unmarshal([]byte(arg), &properties) // QEMU tells what is wrong with it
	o := options{}
	for key, value := range properties {
		o[key] = fmt.Sprint(value)
	}
	return o
}
