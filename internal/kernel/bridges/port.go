package bridges

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
)

// AddPort makes a link a port of the bridge with the settings cfg, and brings it up. It refuses a
// link that has another master, which the kernel would move silently. The port is never up without
// its settings: a link that is up is taken down until it has them. If the kernel refuses them,
// AddPort removes the port again. The request that makes the link a port also sets more.
func AddPort(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings, more ...rtnl.Attr) error {
	return add(c, br, port, cfg, append(slices.Clone(more), rtnl.Up(true)), more)
}

// AddPortDown is AddPort for a port that stays, or goes, down.
func AddPortDown(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings, more ...rtnl.Attr) error {
	return add(c, br, port, cfg, append(slices.Clone(more), rtnl.Up(false)), more)
}

// add does AddPort: more comes with the first request, and last with the last one.
func add(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings, last, more []rtnl.Attr) error {
	if err := CheckPort(c, br, port, cfg); err != nil {
		return err
	}
	added := port.Master == 0
	if added && cfg.IsZero() {
		return addPort(c, br, port, last...)
	}
	if added && port.Up {
		if err := c.Set(port.Index, rtnl.Up(false)); err != nil {
			return fmt.Errorf("add port %s to %s: set it down: %w", port.Name, br.Name, Explain(err))
		}
	}
	if added {
		if err := addPort(c, br, port, more...); err != nil {
			return err
		}
	}
	err := SetPort(c, br, port, cfg)
	if err == nil {
		err = addPort(c, br, port, last...)
	}
	if err != nil && added {
		return errors.Join(err, RemovePort(c, port))
	}
	return err
}

// CheckPort returns why AddPort would refuse a link, as far as that can be seen without a
// change, or nil.
func CheckPort(c *rtnl.Conn, br, port *rtnl.Link, cfg brport.Settings) error {
	if err := notStolen(c, br, port); err != nil {
		return err
	}
	if err := fits(br, cfg); err != nil {
		return fmt.Errorf("add port %s to %s: %w", port.Name, br.Name, err)
	}
	return nil
}

// addPort makes a link a port of br, unless it is one, and sets more of it. The bridge keeps its
// address.
func addPort(c *rtnl.Conn, br, port *rtnl.Link, more ...rtnl.Attr) error {
	if port.Master == 0 {
		if err := pin(c, br, port); err != nil {
			return err
		}
	}
	if err := c.Set(port.Index, append(slices.Clone(more), rtnl.Master(br.Index))...); err != nil {
		return fmt.Errorf("add port %s to %s: %w", port.Name, br.Name, explainPort(c, err, br, port))
	}
	return nil
}

func notStolen(c *rtnl.Conn, br, port *rtnl.Link) error {
	if port.Master != 0 && port.Master != br.Index {
		return fmt.Errorf("add port %s to %s: it is a port of %s now (ip link set %[1]s nomaster)", port.Name, br.Name,
			nameOf(c, port.Master))
	}
	return nil
}

// RemovePort removes a link from its bridge.
func RemovePort(c *rtnl.Conn, port *rtnl.Link) error {
	if err := c.Set(port.Index, rtnl.Master(0)); err != nil {
		return fmt.Errorf("remove %s from its bridge: %w", port.Name, Explain(err))
	}
	return nil
}

// explainPort adds the cause to the error of a request to add a port. It reads the
// link again, since another process may have made it a port in the meantime.
func explainPort(c *rtnl.Conn, err error, br, port *rtnl.Link) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		if now, readErr := c.LinkByIndex(port.Index); readErr == nil && now.Master != 0 && now.Master != br.Index {
			return fmt.Errorf("%w (it is a port of %s now)", err, nameOf(c, now.Master))
		}
		return fmt.Errorf("%w (something else receives its frames: a macvlan or macvtap on it, a bond or Open vSwitch)",
			err)
	case errors.Is(err, syscall.EXFULL):
		return fmt.Errorf("%w (a bridge takes at most 1024 ports, fewer on some kernels)", err)
	case errors.Is(err, syscall.ELOOP):
		return fmt.Errorf("%w (a bridge cannot be a port of a bridge)", err)
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%w (only Ethernet devices other than lo can be ports)", err)
	}
	return Explain(err)
}

// nameOf returns the name of the link with that index, for an error.
func nameOf(c *rtnl.Conn, index int) string {
	if l, err := c.LinkByIndex(index); err == nil {
		return l.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// ForwardsIn returns the time until the port forwards, from its state and the
// bridge's timers. It is 0 if the port forwards, or if waiting will not help.
// A listening port still has to learn for one forward delay.
func ForwardsIn(port, br *rtnl.Link) time.Duration {
	if port.Port == nil || br.Bridge == nil {
		return 0
	}
	switch port.Port.State {
	case rtnl.Listening:
		return port.Port.Timer + br.Bridge.ForwardDelay
	case rtnl.Learning:
		return port.Port.Timer
	}
	return 0
}

// LearnedBy reads the MAC addresses in a bridge's FDB, by the index of their port.
// If port is not 0, it reads only those behind that port.
func LearnedBy(c *rtnl.Conn, bridge, port int) (map[int][]brport.Learned, error) {
	entries, err := c.FDB(bridge, port)
	if err != nil {
		return nil, err
	}
	found := map[int][]brport.Learned{}
	for _, e := range entries {
		found[e.Port] = append(found[e.Port], brport.Learned{MAC: e.MAC.String(), VLAN: e.VLAN, Static: e.Static})
	}
	return found, nil
}
