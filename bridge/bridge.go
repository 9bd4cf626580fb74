// Package bridge makes and reads Linux bridges and their ports.
package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
)

// Config says how a new bridge should be.
type Config struct {
	Name string           // at most 15 bytes
	MTU  int              // bytes; 0 lets the kernel follow the port with the smallest MTU
	MAC  net.HardwareAddr // nil means DefaultMAC(Name)
	STP  bool             // spanning tree; a new port then takes 30 s until it forwards

	// VLANFiltering keeps VLANs apart, as each port's PortConfig says. The host itself is
	// only in the default VLAN, 1. So is every port whose PortConfig names no VLAN.
	VLANFiltering bool

	Ageing    time.Duration  // how long the FDB keeps a learned MAC; 0 means 300 s
	Addresses []netip.Prefix // the host's addresses on the bridge
}

// ErrInvalid is returned for a Config or PortConfig that is inconsistent or out of range.
var ErrInvalid = errors.New("invalid bridge")

// Validate checks what can be checked without the kernel. Its error matches ErrInvalid
// with errors.Is.
func (cfg Config) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg Config) validate() error {
	switch {
	case !ValidName(cfg.Name):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", cfg.Name)
	case cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535):
		return fmt.Errorf("bridge %s: MTU %d: want 68 to 65535 bytes", cfg.Name, cfg.MTU)
	case cfg.Ageing < 0 || cfg.Ageing > 1e6*time.Second:
		return fmt.Errorf("bridge %s: ageing %v: want 0 to 1000000 s", cfg.Name, cfg.Ageing)
	case cfg.MAC != nil && (len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0):
		return fmt.Errorf("bridge %s: MAC %s: want 6 bytes, not multicast", cfg.Name, cfg.MAC)
	}
	return nil
}

// ValidName reports whether the kernel accepts name unchanged as an interface's name
// (dev_valid_name). It would cut a longer name at 15 bytes, and replace %d with a number.
// It counts 0xa0 as a space.
func ValidName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0xa0 || c == '/' || c == ':' || c == '%' {
			return false
		}
	}
	return name != "" && len(name) <= 15 && name != "." && name != ".."
}

// DefaultMAC returns the address of a bridge whose Config names none. It is always the same
// on one machine. Create sets it because a bridge without one takes the lowest address of its
// ports, which changes as guests start and stop.
func DefaultMAC(name string) net.HardwareAddr {
	return stablemac.New([]byte{0x02}, "bridge", name)
}

// Create makes a bridge and brings it up. If a later step fails, it removes the bridge
// again. If the name is taken, the error matches fs.ErrExist with errors.Is.
func Create(c *rtnl.Conn, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.MAC == nil {
		cfg.MAC = DefaultMAC(cfg.Name)
	}
	attrs := []rtnl.Attr{rtnl.Name(cfg.Name), rtnl.MAC(cfg.MAC), rtnl.BridgeSTP(cfg.STP)}
	if cfg.MTU != 0 {
		attrs = append(attrs, rtnl.MTU(cfg.MTU))
	}
	if cfg.Ageing != 0 {
		attrs = append(attrs, rtnl.BridgeAgeing(int(cfg.Ageing.Seconds())))
	}
	if err := c.Create("bridge", attrs...); err != nil {
		return fmt.Errorf("create bridge %s: %w", cfg.Name, explain(err))
	}
	br, err := c.Link(cfg.Name)
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	if err := setUp(c, br, cfg); err != nil {
		return errors.Join(fmt.Errorf("create bridge %s: %w", cfg.Name, explain(err)), c.Delete(br.Index))
	}
	return nil
}

func setUp(c *rtnl.Conn, br *rtnl.Link, cfg Config) error {
	if cfg.VLANFiltering {
		if err := filterVLANs(c, br); err != nil {
			return err
		}
	}
	for _, a := range cfg.Addresses {
		if err := c.AddAddr(br.Index, a); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := c.Set(br.Index, rtnl.Up(true)); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// Get reads a bridge's link. It fails if the link is not a bridge. If there is no link of
// that name, the error matches fs.ErrNotExist with errors.Is.
func Get(c *rtnl.Conn, name string) (*rtnl.Link, error) {
	br, err := c.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bridge %s: %w (vmnet bridge list shows the bridges of this host)", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if br.Bridge == nil {
		kind := br.Kind
		if kind == "" {
			kind = "physical"
		}
		return nil, fmt.Errorf("%s is not a bridge but a %s device", name, kind)
	}
	return br, nil
}

// Delete removes a bridge. Without force it refuses to remove a bridge that has ports,
// since they would lose their network.
func Delete(c *rtnl.Conn, name string, force bool) error {
	br, err := Get(c, name)
	if err != nil {
		return err
	}
	ports, err := c.Links("", br.Index)
	if err != nil {
		return err
	}
	if len(ports) > 0 && !force {
		var names []string
		for _, p := range ports {
			names = append(names, p.Name)
		}
		return fmt.Errorf("delete bridge %s: it has ports: %s (detach them first, or use --force)", name, strings.Join(names, ", "))
	}
	if err := c.Delete(br.Index); err != nil {
		return fmt.Errorf("delete bridge %s: %w", name, explain(err))
	}
	return nil
}

// explain adds the cause and cure to errors of bridge requests.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel's bridge driver is missing or not loaded: modprobe bridge)", err)
	}
	return err
}
