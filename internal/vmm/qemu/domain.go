package qemu

import (
	"slices"
	"strings"
)

// OfDomain returns the processes that may be the QEMU of a domain of libvirt's that runs, by its
// name and UUID: those that say so by its name and UUID, which anybody can write on a command line.
// If several do, it is those that run as libvirt says, or where none does, as in a user namespace,
// all of them.
func OfDomain(name, uuid string, runAs int) ([]Process, error) {
	procs, err := OfLibvirt(name)
	if err != nil {
		return nil, err
	}
	procs = slices.DeleteFunc(procs, func(p Process) bool { return !strings.EqualFold(p.UUID, uuid) })
	if len(procs) < 2 || runAs < 0 {
		return procs, nil
	}
	var vouched []Process
	for _, p := range procs {
		if p.UID == runAs {
			vouched = append(vouched, p)
		}
	}
	if len(vouched) == 0 {
		return procs, nil
	}
	return vouched, nil
}
