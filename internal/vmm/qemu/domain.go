package qemu

import (
	"slices"
	"strings"
)

// OfDomain returns the processes that may be the QEMU of a running libvirt domain: those whose
// command line has its name and UUID, which any user can write. If there are several, it returns
// those that run as the uid that libvirt reports, or all of them if none does, as in a user
// namespace.
func (r Running) OfDomain(name, uuid string, runAs int) []Process {
	procs := slices.DeleteFunc(r.OfLibvirt(name), func(p Process) bool { return !strings.EqualFold(p.UUID, uuid) })
	if len(procs) < 2 || runAs < 0 {
		return procs
	}
	var vouched []Process
	for _, p := range procs {
		if p.UID == runAs {
			vouched = append(vouched, p)
		}
	}
	if len(vouched) == 0 {
		return procs
	}
	return vouched
}

// OfDomain is [Running.OfDomain] with a look at /proc of its own.
func OfDomain(name, uuid string, runAs int) ([]Process, error) {
	r, err := Look()
	return r.OfDomain(name, uuid, runAs), err
}
