package doctor

import (
	"fmt"
	"strings"

	"vmnet/bridge"
)

// bridges checks the bridges of the netns.
func (m Machine) bridges() []Check {
	if m.NS == nil {
		return nil
	}
	all, err := list(m)
	if err != nil {
		return fail("bridges", "", "%v", err)
	}
	if len(all) == 0 {
		return warn("bridges", "vmnet bridge create br0", "there is none: --bridge cannot be used")
	}
	var checks []Check
	for _, b := range all {
		checks = append(checks, look(b)...)
		checks = append(checks, m.address(b)...)
	}
	return checks
}

// address checks whether a bridge's address vanishes with a guest. Whether the address was set is
// in sysfs: NET_ADDR_SET of include/uapi/linux/netdevice.h, as far as the user may read it.
func (m Machine) address(b bridge.Info) []Check {
	const set = "3"
	how, err := m.NS.ReadSys("class/net/" + b.Name + "/addr_assign_type")
	if b.MACOf == "" || err == nil && strings.TrimSpace(how) == set {
		return nil
	}
	unless := ""
	if err != nil {
		unless = ", unless somebody has set it, which only root can see"
	}
	return warn("bridge "+b.Name, fmt.Sprintf("ip link set %s address %s", b.Name, b.MAC),
		"its address is that of its port %s%s: when that goes, it gets another one, and guests lose the host until their ARP caches forget the old one (the next vmnet attach to it sees to that)",
		b.MACOf, unless)
}

func list(m Machine) ([]bridge.Info, error) {
	path := "" // of the current namespace, which any user may look at
	if !m.NS.IsCurrent() {
		path = m.NS.Path()
	}
	h, err := bridge.Open(path)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.List()
}

func look(b bridge.Info) []Check {
	name := "bridge " + b.Name
	is := fmt.Sprintf("MTU %d bytes, %d ports", b.MTU, len(b.Ports))
	switch {
	case !b.Up:
		return warn(name, "ip link set "+b.Name+" up", "%s; it is down: no frame passes it", is)
	case b.STP:
		return warn(name, "vmnet attach --wait, or ip link set "+b.Name+" type bridge stp_state 0",
			"%s; it runs STP: a new port takes 30 s until it forwards, and a guest's DHCP may have given up by then",
			is)
	}
	return ok(name, "%s, up", is)
}
