package qemu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// memoryID is the id of the memory backend that SharedMemory adds.
const memoryID = "vmnet-mem"

// defaultMemory is what most machines have without -m, in MiB (default_ram_size in QEMU's
// hw/core/machine.c).
const defaultMemory = 128

// SharedMemory returns the arguments that make another process able to map all of the memory of the
// guest of a command line: none if it can already. It returns an error if the command line arranges
// the memory itself in another way.
func SharedMemory(argv []string) (args []string, err error) {
	const cure = "give each memory backend share=on, and use memory-backend-memfd or memory-backend-file"
	shared := map[string]bool{}
	machine, size := "", ""
	for opt, value := range valued(argv) {
		switch opt {
		case "object":
			o := parseObject(value, "qom-type")
			kind, isMemory := strings.CutPrefix(o["qom-type"], "memory-backend-")
			if !isMemory {
				continue
			}
			shared[o["id"]] = true
			switch {
			case kind != "memfd" && kind != "file":
				return nil, fmt.Errorf("the memory %q is a memory-backend-%s, which a switch cannot map (%s)",
					o["id"], kind, cure)
			case !isOn(o["share"], kind == "memfd"):
				return nil, fmt.Errorf("the memory %q is private to QEMU (%s)", o["id"], cure)
			}
		case "machine", "M":
			if o := parseOptions(value, "type"); o["memory-backend"] != "" {
				machine = o["memory-backend"]
			}
		case "numa":
			o := parseObject(value, "type")
			if o["type"] == "node" && o["memdev"] == "" {
				return nil, fmt.Errorf("-numa %s has memory that is private to QEMU (%s, and name it with memdev=)",
					value, cure)
			}
			if o["memdev"] != "" {
				machine = o["memdev"]
			}
		case "mem-path":
			return nil, fmt.Errorf("-mem-path makes memory that is private to QEMU (-object memory-backend-file,"+
				"id=mem,size=SIZE,mem-path=%s,share=on -machine memory-backend=mem)", value)
		case "m":
			if size = parseObject(value, "size")["size"]; size == "" {
				size = strconv.Itoa(defaultMemory)
			}
		}
	}
	switch {
	case machine != "" && !shared[machine]:
		return nil, fmt.Errorf("the memory %q is no -object of the command line (%s)", machine, cure)
	case machine != "":
		return nil, nil
	case shared[memoryID]:
		return nil, fmt.Errorf("the id %s is taken (rename that object)", memoryID)
	}
	if size == "" {
		size = strconv.Itoa(defaultMemory)
	}
	if strings.Trim(size, "0123456789") == "" {
		size += "M"
	}
	return []string{
		"-object", "memory-backend-memfd,id=" + memoryID + ",size=" + Escape(size) + ",share=on",
		"-machine", "memory-backend=" + memoryID,
	}, nil
}

// isOn reports whether a boolean property of a command line is on.
func isOn(value string, byDefault bool) bool {
	if value == "" {
		return byDefault
	}
	return slices.Contains([]string{"on", "yes", "true", "y"}, strings.ToLower(value))
}

// SurelyKVM reports whether a QEMU with that command line runs its guest by KVM or not at all.
func SurelyKVM(argv []string) bool {
	if slices.Contains(argv, "-enable-kvm") || slices.Contains(argv, "--enable-kvm") {
		return true
	}
	var all []string
	for opt, value := range valued(argv) {
		switch opt {
		case "accel":
			all = append(all, parseOptions(value, "accel")["accel"])
		case "machine", "M":
			if accel := parseOptions(value, "type")["accel"]; accel != "" {
				all = append(all, strings.Split(accel, ":")...)
			}
		}
	}
	return len(all) > 0 && !slices.ContainsFunc(all, func(accel string) bool { return accel != "kvm" })
}
