package doctor

import (
	"errors"
	"io/fs"

	"vmnet/bridge/vswitch"
	"vmnet/internal/kernel/netns"
)

// packetPorts are what the userspace switch needs the kernel for.
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
	err := vswitch.MayOpenPacket(ns)
	switch {
	case err == nil:
		return ok(name, "vmnet switch can have network cards and others' taps as ports")
	case errors.Is(err, fs.ErrPermission):
		return ok(name, "vmnet switch can have sockets and one's own taps as ports; whether also network cards and others' taps, only root can see")
	}
	return warn(name, "modprobe nf_tables", "vmnet switch can have no network card and nobody else's tap as a port: %v", err)
}
