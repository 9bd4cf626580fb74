// Package bridges sets up bridges and their ports over route netlink, and reads them back.
package bridges

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
)

// Get reads a bridge's link. It fails if the link is not a bridge. If there is no link of
// that name, the error matches fs.ErrNotExist with errors.Is.
func Get(c *rtnl.Conn, name string) (*rtnl.Link, error) {
	br, err := c.Link(name)
	return Of(name, br, err)
}

// Of is Get for a link of that name that has been read already, with that error.
func Of(name string, br *rtnl.Link, err error) (*rtnl.Link, error) {
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

// DefaultMAC returns the address of a new bridge for which no other is requested. It is always the
// same on one machine. A bridge without a set address would take the lowest address of its ports,
// which changes as guests start and stop.
func DefaultMAC(name string) net.HardwareAddr {
	return stablemac.New(defaultPrefix, "bridge", name)
}

var defaultPrefix = []byte{0x02}

// Filters reports whether a bridge filters VLANs.
func Filters(br *rtnl.Link) bool { return br.Bridge != nil && br.Bridge.VLANFiltering }

// StartFiltering turns VLAN filtering on for a new bridge and reads the setting back: a kernel
// that was built without it refuses the request or ignores it, depending on its version. It
// is a separate request because a kernel without a bridge driver refuses in the same way.
func StartFiltering(c *rtnl.Conn, br *rtnl.Link) error {
	err := c.Change("bridge", br.Index, rtnl.BridgeVLANFiltering(true))
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("filter VLANs: %w", err)
	}
	now, err := c.LinkByIndex(br.Index)
	if err == nil && !Filters(now) {
		err = cannotFilter(br.Name)
	}
	return err
}

func cannotFilter(bridge string) error {
	return fmt.Errorf(
		"bridge %s cannot filter VLANs: %w, which lacks CONFIG_BRIDGE_VLAN_FILTERING (use one bridge for each VLAN, or another kernel)",
		bridge, brport.ErrNotSupported)
}

// Explain adds the cause and cure to errors of bridge requests.
func Explain(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel's bridge driver is missing or not loaded: modprobe bridge)", err)
	}
	return err
}
