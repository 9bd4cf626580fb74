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

// MachineOf parses -machine and -M, which QEMU merges: the last value of each property counts
// (machine_opts_dict in QEMU's softmmu/vl.c). For a file given by -readconfig, see Expand.
func MachineOf(argv []string) Machine {
	o := options{}
	for opt, value := range valued(argv) {
		if opt == "machine" || opt == "M" {
			maps.Copy(o, parseOptions(value, "type"))
		}
	}
	arch := architecture(argv)
	if o["type"] == "" {
		o["type"] = defaultMachines[arch]
	}
	return Machine{Type: o["type"], Place: placeIn(o["type"], o["pcie"] == "on", arch)}
}

// architecture returns the emulated architecture; qemu-kvm and kvm have that of the host.
func architecture(argv []string) string {
	if len(argv) == 0 || !IsQEMU(argv[0]) {
		return ""
	}
	name, named := strings.CutPrefix(filepath.Base(argv[0]), "qemu-system-")
	switch {
	case !named && runtime.GOARCH == "amd64", strings.HasPrefix(name, "x86_64"), strings.HasPrefix(name, "i386"):
		return "x86"
	case !named && runtime.GOARCH == "arm64":
		return "aarch64"
	case !named:
		return runtime.GOARCH
	}
	return name
}

// Taken are the names that a command line uses already.
type Taken struct {
	IDs     map[string]bool // of devices, netdevs and all other objects
	Chassis map[uint8]bool  // numbers of root ports, switches and bridges
}

// ReadTaken looks for id=, chassis= and chassis_nr= in all arguments, whatever option they belong
// to, and also in JSON.
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

// parseJSON parses the form that -device and -netdev also take; other text gives no options.
func parseJSON(arg string) options {
	var properties map[string]any
	_ = json.Unmarshal([]byte(arg), &properties) // QEMU reports the error
	o := options{}
	for key, value := range properties {
		o[key] = fmt.Sprint(value)
	}
	return o
}
