package bridge

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vmnet/internal/kernel/rtnl"
)

// AddPort makes a link a port of the bridge and brings it up, in one request.
// A link that has another master is refused: the kernel would move it silently.
func AddPort(c *rtnl.Conn, br, port *rtnl.Link) error {
	if err := notStolen(c, br, port); err != nil {
		return err
	}
	return addPort(c, br, port, rtnl.Up(true))
}

// AddPortWith is AddPort for a port that has settings, of which it is never without
// while it is up: a link that is up is taken down until it has them. Where
// they are refused, it is taken off the bridge again. more is set of the link by the same
// request that makes it a port.
func AddPortWith(c *rtnl.Conn, br, port *rtnl.Link, cfg PortConfig, more ...rtnl.Attr) error {
	if err := CheckPort(c, br, port, cfg); err != nil {
		return err
	}
	added := port.Master == 0
	up := append(slices.Clone(more), rtnl.Up(true))
	if added && cfg.IsZero() {
		return addPort(c, br, port, up...)
	}
	if added && port.Up {
		if err := c.Set(port.Index, rtnl.Up(false)); err != nil {
			return fmt.Errorf("add port %s to %s: set it down: %w", port.Name, br.Name, explain(err))
		}
	}
	if added {
		if err := addPort(c, br, port, more...); err != nil {
			return err
		}
	}
	err := SetPort(c, br, port, cfg)
	if err == nil {
		err = addPort(c, br, port, up...)
	}
	if err != nil && added {
		return errors.Join(err, RemovePort(c, port))
	}
	return err
}

// CheckPort tells why AddPortWith would refuse a link, as far as that is seen without a change.
func CheckPort(c *rtnl.Conn, br, port *rtnl.Link, cfg PortConfig) error {
	if err := notStolen(c, br, port); err != nil {
		return err
	}
	if err := cfg.fits(br); err != nil {
		return fmt.Errorf("add port %s to %s: %w", port.Name, br.Name, err)
	}
	return nil
}

// addPort makes a link a port and changes more of it. That it is one is no error. The bridge keeps its address.
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
		return fmt.Errorf("add port %s to %s: it is a port of %s now", port.Name, br.Name, nameOf(c, port.Master))
	}
	return nil
}

// RemovePort takes a link off whatever bridge it is on.
func RemovePort(c *rtnl.Conn, port *rtnl.Link) error {
	if err := c.Set(port.Index, rtnl.Master(0)); err != nil {
		return fmt.Errorf("take %s off its bridge: %w", port.Name, explain(err))
	}
	return nil
}

// explainPort adds what a failed request to add a port means. It reads the
// link again: somebody may have been faster.
func explainPort(c *rtnl.Conn, err error, br, port *rtnl.Link) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		if now, readErr := c.LinkByIndex(port.Index); readErr == nil && now.Master != 0 && now.Master != br.Index {
			return fmt.Errorf("%w (it is a port of %s now)", err, nameOf(c, now.Master))
		}
		return fmt.Errorf("%w (something else takes its frames: a macvlan or macvtap on it, a bond or Open vSwitch)", err)
	case errors.Is(err, syscall.EXFULL):
		return fmt.Errorf("%w (a bridge takes 1024 ports at most, less on some kernels)", err)
	case errors.Is(err, syscall.ELOOP):
		return fmt.Errorf("%w (a bridge cannot be a port of a bridge)", err)
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%w (only Ethernet devices other than lo can be ports)", err)
	}
	return explain(err)
}

// nameOf names a link by index for an error text.
func nameOf(c *rtnl.Conn, index int) string {
	if l, err := c.LinkByIndex(index); err == nil {
		return l.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// ForwardsIn tells how long it takes until the port forwards, as its state and
// the bridge's timers say: 0 when it does, or when it never will by waiting.
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

// LearnedBy reads which MAC addresses a bridge knows behind its ports, by the
// port's index; one port's only where port is not 0.
func LearnedBy(c *rtnl.Conn, bridge, port int) (map[int][]Learned, error) {
	entries, err := c.FDB(bridge, port)
	if err != nil {
		return nil, err
	}
	found := map[int][]Learned{}
	for _, e := range entries {
		found[e.Port] = append(found[e.Port], Learned{MAC: e.MAC.String(), VLAN: e.VLAN, Static: e.Static})
	}
	return found, nil
}
