package qemu

import "strconv"

// maxCPUs is more than QEMU gives any machine.
const maxCPUs = 4096

// CPUs returns the number of virtual CPUs with which a command line starts the guest (-smp): its
// cpus=, else the product of the topology's values, else 1 (machine_parse_smp_config in QEMU's
// hw/core/machine-smp.c).
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
		for _, level := range []string{
			"drawers", "books", "sockets", "dies", "clusters",
			"modules", "cores", "threads",
		} {
			n = min(n*max(count(o[level]), 1), maxCPUs)
		}
	}
	return n
}

// count parses a number of CPUs; 0 for a value that QEMU refuses.
func count(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxCPUs {
		return 0
	}
	return n
}
