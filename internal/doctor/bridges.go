package doctor

import (
	"fmt"

	"vmnet/bridge"
	"vmnet/internal/rtnl"
)

// bridges looks at those of the netns.
func (m Machine) bridges() []Check {
	if m.NS == nil {
		return nil
	}
	all, err := list(m)
	if err != nil {
		return fail("bridges", "", "%v", err)
	}
	if len(all) == 0 {
		return warn("bridges", "vmnet bridge create br0", "there is none: only --macvtap and --ipvtap can be used")
	}
	var checks []Check
	for _, b := range all {
		checks = append(checks, look(b)...)
	}
	return checks
}

func list(m Machine) ([]bridge.Info, error) {
	c, err := rtnl.Open(m.NS)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return bridge.List(c)
}

func look(b bridge.Info) []Check {
	name := "bridge " + b.Name
	is := fmt.Sprintf("MTU %d bytes, %d ports", b.MTU, len(b.Ports))
	switch {
	case !b.Up:
		return warn(name, "ip link set "+b.Name+" up", "%s; it is down: no frame passes it", is)
	case b.STP:
		return warn(name, "vmnet attach --wait, or ip link set "+b.Name+" type bridge stp_state 0",
			"%s; it runs STP: a new port takes 30 s until it forwards, and a guest's DHCP may have given up by then", is)
	}
	return ok(name, "%s, up", is)
}
