package qemu

import "strconv"

// maxCPUs is more than QEMU gives any machine.
const maxCPUs = 4096

// CPUs is how many virtual CPUs a command line starts the guest with (-smp): its cpus=, else
// the product of what it says of the topology, else 1 (machine_parse_smp_config in
// QEMU's hw/core/machine-smp.c).
func CPUs(argv []string) int {
	n := 1
	for opt, value := range valued(argv) {
		if opt != "smp" {
			continue
		}
		o := parseOptions(value, "cpus")
		n = count(o["cpus"])
		if o["cpus"] != "" && n > 0 {
			continue
		}
		n = 1
		for _, level := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
			n = min(n*max(count(o[level]), 1), maxCPUs)
		}
	}
	return n
}

// count reads a number of CPUs; 0 for none that QEMU would take.
func count(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxCPUs {
		return 0
	}
	return n
}
