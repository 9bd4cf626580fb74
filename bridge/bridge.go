// Package bridge makes, changes and reads Linux bridges and their ports: [Open] a network
// namespace, and use the methods of [Host]. Package brport has the settings of ports.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// Config says how a new bridge should be.
type Config struct {
	Name string           // at most 15 bytes
	MTU  int              // bytes; 0 lets the kernel follow the port with the smallest MTU
	MAC  net.HardwareAddr // nil means DefaultMAC(Name)
	STP  bool             // spanning tree; a new port then takes 30 s until it forwards

	// VLANFiltering keeps VLANs apart, as each port's brport.Settings says. The host itself is
	// only in the default VLAN, 1. So is every port whose brport.Settings names no VLAN.
	VLANFiltering bool

	Ageing    time.Duration  // how long the FDB keeps a learned MAC; 0 means 300 s
	Addresses []netip.Prefix // the host's addresses on the bridge

	// VXLAN has the guests on the bridge share a segment with guests of other hosts, or with a map
	// one for each VLAN, which needs VLANFiltering; nil for a bridge of this host alone, or for any
	// in Ensure. MTU is that of the segments too; 0 then means 1500 bytes, or what the network
	// between the hosts carries.
	VXLAN *vxlan.Config
}

// Validate checks what can be checked without the kernel. Its error matches
// brport.ErrInvalid with errors.Is.
func (cfg Config) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w bridge: %w", brport.ErrInvalid, err)
	}
	return nil
}

func (cfg Config) validate() error {
	switch {
	case !brport.ValidName(cfg.Name):
		return fmt.Errorf("bridge name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", cfg.Name)
	case cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535):
		return fmt.Errorf("bridge %s: MTU %d: want 68 to 65535 bytes", cfg.Name, cfg.MTU)
	case cfg.Ageing < 0 || cfg.Ageing > 1e6*time.Second:
		return fmt.Errorf("bridge %s: ageing %v: want 0 to 1000000 s", cfg.Name, cfg.Ageing)
	case cfg.MAC != nil && (len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0):
		return fmt.Errorf("bridge %s: MAC %s: want 6 bytes, not multicast", cfg.Name, cfg.MAC)
	}
	if cfg.VXLAN == nil {
		return nil
	}
	if err := cfg.VXLAN.Validate(); err != nil {
		return fmt.Errorf("bridge %s: %w", cfg.Name, err)
	}
	if cfg.VXLAN.Map != nil && !cfg.VLANFiltering {
		return fmt.Errorf("bridge %s: a map of VLANs needs a bridge that filters them (--vlan-filtering)", cfg.Name)
	}
	return nil
}

// DefaultMAC returns the address of a bridge whose Config names none. It is always the same
// on one machine. Create sets it because a bridge without one takes the lowest address of its
// ports, which changes as guests start and stop.
func DefaultMAC(name string) net.HardwareAddr { return bridges.DefaultMAC(name) }

// Create makes a bridge and brings it up. If a later step fails, it removes the bridge
// again. If the name is taken, the error matches fs.ErrExist with errors.Is.
func (h *Host) Create(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.MAC == nil {
		cfg.MAC = DefaultMAC(cfg.Name)
	}
	segment, err := h.vxlanSteps(cfg)
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	attrs := []rtnl.Attr{rtnl.Name(cfg.Name), rtnl.MAC(cfg.MAC), rtnl.BridgeSTP(cfg.STP)}
	if cfg.VXLAN != nil {
		attrs = append(attrs, rtnl.BridgeNoSnooping()) // the members of groups are on other hosts as well
	}
	if cfg.MTU != 0 {
		attrs = append(attrs, rtnl.MTU(cfg.MTU))
	}
	if cfg.Ageing != 0 {
		attrs = append(attrs, rtnl.BridgeAgeing(int(cfg.Ageing.Seconds())))
	}
	if err := h.nl.Create("bridge", attrs...); err != nil {
		return fmt.Errorf("create bridge %s: %w", cfg.Name, bridges.Explain(err))
	}
	br, err := h.nl.Link(cfg.Name)
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	err = h.setUp(br, cfg)
	if err == nil {
		err = step.Run(context.Background(), segment, nil)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create bridge %s: %w", cfg.Name, bridges.Explain(err)), h.nl.Delete(br.Index))
	}
	return nil
}

func (h *Host) setUp(br *rtnl.Link, cfg Config) error {
	if cfg.VLANFiltering {
		if err := bridges.StartFiltering(h.nl, br); err != nil {
			return err
		}
	}
	for _, a := range cfg.Addresses {
		if err := h.nl.AddAddr(br.Index, a); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := h.nl.Set(br.Index, rtnl.Up(true)); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// Delete removes a bridge, with the VXLAN device that was made for it. Without force it refuses to
// remove a bridge that has other ports, since they would lose their network.
func (h *Host) Delete(name string, force bool) error {
	own, err := bridges.VXLANs(h.nl, name)
	if err != nil {
		return err
	}
	br, err := bridges.Get(h.nl, name)
	if errors.Is(err, fs.ErrNotExist) && len(own) > 0 { // somebody has deleted the bridge alone
		return h.deleteVXLANs(name, own)
	}
	if err != nil {
		return err
	}
	ports, err := h.nl.Links("", br.Index)
	if err != nil {
		return err
	}
	ports = slices.DeleteFunc(ports, func(p *rtnl.Link) bool {
		return slices.ContainsFunc(own, func(l *rtnl.Link) bool { return l.Index == p.Index })
	})
	if len(ports) > 0 && !force {
		var names []string
		for _, p := range ports {
			names = append(names, p.Name)
		}
		return fmt.Errorf("delete bridge %s: it has ports: %s (detach them first, or use --force)",
			name, strings.Join(names, ", "))
	}
	if err := h.deleteVXLANs(name, own); err != nil {
		return err
	}
	if err := h.nl.Delete(br.Index); err != nil {
		return fmt.Errorf("delete bridge %s: %w", name, bridges.Explain(err))
	}
	return nil
}
