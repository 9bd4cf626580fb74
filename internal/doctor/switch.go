package doctor

import (
	"errors"
	"io/fs"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
)

// packetPorts checks what the userspace switch needs from the kernel.
func (m Machine) packetPorts() []Check {
	const name = "switch"
	ns := m.NS
	if ns == nil {
		var err error
		if ns, err = netns.Current(); err != nil {
			return fail(name, "", "%v", err)
		}
		defer ns.Close()
	}
	err := endpoint.MayOpenPacket(ns)
	switch {
	case err == nil:
		return ok(name, "vmnet switch can have network cards and others' taps as ports")
	case errors.Is(err, fs.ErrPermission):
		return ok(name,
			"vmnet switch can have sockets and your own taps as ports; for network cards and others' taps run this as root")
	}
	return warn(name, "modprobe nf_tables", "vmnet switch can have neither network cards nor others' taps as ports: %v",
		err)
}
