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
	MTU  int              // bytes; 0 leaves it to the kernel, which follows the smallest port
	MAC  net.HardwareAddr // nil means DefaultMAC's
	STP  bool             // spanning tree; ports then take 30 s until they forward

	// VLANFiltering keeps VLANs apart, as PortConfig says port by port. The host itself
	// is in the default VLAN, 1, only, as is every port for which nothing else is said.
	VLANFiltering bool

	Ageing    time.Duration  // how long a MAC is remembered; 0 means 300 s
	Addresses []netip.Prefix // of the host on the bridge
}

// ErrInvalid is a Config that makes no sense.
var ErrInvalid = errors.New("invalid bridge")

// Validate checks what can be checked without the kernel. Its error Is ErrInvalid.
func (cfg Config) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg Config) validate() error {
	switch {
	case !ValidName(cfg.Name):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without blanks, '/', ':' or '%%'", cfg.Name)
	case cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535):
		return fmt.Errorf("bridge %s: MTU %d: want 68 to 65535 bytes", cfg.Name, cfg.MTU)
	case cfg.Ageing < 0 || cfg.Ageing > 1e6*time.Second:
		return fmt.Errorf("bridge %s: ageing %v: want 0 to 1000000 s", cfg.Name, cfg.Ageing)
	case cfg.MAC != nil && (len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0):
		return fmt.Errorf("bridge %s: MAC %s: want 6 bytes, not multicast", cfg.Name, cfg.MAC)
	}
	return nil
}

// ValidName tells whether the kernel takes name for an interface as it is
// (dev_valid_name): it would cut at 15 bytes and replace %d. 0xa0 is a blank to it.
func ValidName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0xa0 || c == '/' || c == ':' || c == '%' {
			return false
		}
	}
	return name != "" && len(name) <= 15 && name != "." && name != ".."
}

// DefaultMAC is a bridge's own address where none is asked for: the same each time on
// the same machine. It has to be set, since otherwise the bridge follows its lowest
// port, and its address would change under the host's neighbours as guests come and go.
func DefaultMAC(name string) net.HardwareAddr {
	return stablemac.New([]byte{0x02}, "bridge", name)
}

// Create makes a bridge and brings it up. When a later step fails the bridge is
// removed again. A taken name is an error that Is fs.ErrExist.
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

// Get reads a bridge's link. A link that is none is an error, as is none of
// that name, which Is fs.ErrNotExist.
func Get(c *rtnl.Conn, name string) (*rtnl.Link, error) {
	br, err := c.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bridge %s: %w (vmnet bridge list shows those that are here)", name, err)
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

// Delete removes a bridge. Unless force, one that has ports is left alone: its
// ports would lose their network.
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
		return fmt.Errorf("%w (the kernel has no bridge driver, or it is not loaded: modprobe bridge)", err)
	}
	return err
}
