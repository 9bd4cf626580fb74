package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// Ensured says what Ensure did.
type Ensured struct {
	Created bool
	WasDown bool           // the bridge existed, and was brought up
	Added   []netip.Prefix // the addresses that an existing bridge lacked
	VXLAN   []string       // the changes of an existing bridge's VXLAN device, as commands
}

// Changed reports whether Ensure changed anything.
func (e Ensured) Changed() bool { return e.Created || e.WasDown || len(e.Added)+len(e.VXLAN) > 0 }

// Ensure makes a bridge as Create does, or makes sure that the existing one of that name is as the
// Config says. An unset MTU, MAC or VXLAN matches any. Ensure adds missing addresses, completes the
// VXLAN device with its remote hosts, and brings the bridge up. If anything else differs, or the
// device is not a bridge, the error names the difference and matches fs.ErrExist with errors.Is.
func (h *Host) Ensure(cfg Config) (Ensured, error) {
	err := h.Create(cfg)
	if !errors.Is(err, fs.ErrExist) {
		return Ensured{Created: err == nil}, err
	}
	br, readErr := h.nl.Link(cfg.Name)
	switch {
	case errors.Is(readErr, fs.ErrNotExist): // another device has a name that the bridge needs
		return Ensured{}, err
	case readErr != nil:
		return Ensured{}, errors.Join(err, readErr)
	}
	if br.Bridge == nil {
		err := bridges.Taken("a device of that name already exists and is not a bridge (ip link show %s)", cfg.Name)
		return Ensured{}, fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	if diff := cfg.differences(br); len(diff) > 0 {
		err := bridges.Taken("it already exists with other settings: %s (change it with "+
			"ip link set %s type bridge ...)", strings.Join(diff, ", "), cfg.Name)
		return Ensured{}, fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	segment, err := h.vxlanSteps(cfg)
	if err != nil {
		return Ensured{}, fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	done, err := h.complete(br, cfg.Addresses, segment)
	if err != nil {
		err = fmt.Errorf("bridge %s: %w", cfg.Name, bridges.Explain(err))
	}
	return done, err
}

// differences describes the settings of a bridge that are not as the Config says.
func (cfg Config) differences(br *rtnl.Link) []string {
	var diff []string
	add := func(what string, is, want any) {
		if is != want {
			diff = append(diff, fmt.Sprintf("%s is %v, asked for %v", what, is, want))
		}
	}
	onOff := map[bool]string{true: "on", false: "off"}
	if cfg.MTU != 0 {
		add("MTU", br.MTU, cfg.MTU)
	}
	if cfg.MAC != nil {
		add("MAC", br.MAC.String(), cfg.MAC.String())
	}
	if cfg.Ageing != 0 {
		add("ageing", br.Bridge.Ageing, cfg.Ageing)
	}
	add("STP", onOff[br.Bridge.STP], onOff[cfg.STP])
	add("VLAN filtering", onOff[bridges.Filters(br)], onOff[cfg.VLANFiltering])
	return diff
}

// complete adds the addresses that an existing bridge lacks, does the steps of its VXLAN device,
// and brings it up.
func (h *Host) complete(br *rtnl.Link, addrs []netip.Prefix, segment []step.Step) (done Ensured, err error) {
	has, err := h.nl.Addrs(br.Index)
	if err != nil {
		return done, err
	}
	for _, a := range addrs {
		if slices.Contains(has, a) {
			continue
		}
		if err := h.nl.AddAddr(br.Index, a); err != nil {
			return done, fmt.Errorf("add address %s: %w", a, err)
		}
		done.Added = append(done.Added, a)
	}
	if err := step.Run(context.Background(), segment, nil); err != nil {
		return done, err
	}
	for _, s := range segment {
		done.VXLAN = append(done.VXLAN, s.Text)
	}
	if !br.Up {
		if err := h.nl.Set(br.Index, rtnl.Up(true)); err != nil {
			return done, fmt.Errorf("set up: %w", err)
		}
		done.WasDown = true
	}
	return done, nil
}
