package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/bridge"
	"vmnet/bridge/vxlan"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/evpn"
	"vmnet/internal/kernel/netns"
	"vmnet/tapmgr/nic"
)

// vxlanFlags adds the flags of a bridge's VXLAN device. The result returns what they say; nil if
// there is to be none.
func vxlanFlags(cmd *cobra.Command) func() (*vxlan.Config, error) {
	var v vxlan.Config
	f := cmd.Flags()
	number(f, &v.VNI, "vxlan", "VNI",
		"join guests of other hosts on the segment VNI, by a device vxVNI: 1 to 16777215")
	f.Var(nicflags.Value("VLAN:VNI[,...]", "", func(s string) (err error) {
		v.Map, err = vxlan.ParseMap(s)
		return err
	}), "vxlan-map", "join guests of each VLAN on a segment, by a device vx-NAME: VLANs and VNIs, or ranges of both")
	f.Var(nicflags.Value("ADDRESS", "", func(s string) (err error) { v.Local, err = hostAddress(s); return err }),
		"local", "the address of this host by which the others reach it (with --vxlan or --vxlan-map)")
	f.Var(nicflags.Values("ADDRESS", func(s string) error {
		a, err := hostAddress(s)
		v.Remotes = append(v.Remotes, a)
		return err
	}), "remote", "another host of the segment (repeatable; default: those that FRR adds for EVPN)")
	number(f, &v.Port, "vxlan-port", "PORT", "UDP port of the segment (default 4789)")
	for _, name := range []string{"vxlan", "vxlan-map", "local", "remote", "vxlan-port"} {
		complete(cmd, name, cobra.FixedCompletions(nil, noFiles))
	}
	return func() (*vxlan.Config, error) {
		switch {
		case f.Changed("vxlan") && f.Changed("vxlan-map"):
			return nil, usagef("--vxlan %d and --vxlan-map: want one of them", v.VNI)
		case f.Changed("vxlan"), f.Changed("vxlan-map"):
			return &v, nil
		}
		for _, name := range []string{"local", "remote", "vxlan-port"} {
			if f.Changed(name) {
				return nil, usagef("--%s is about a segment (add --vxlan VNI)", name)
			}
		}
		return nil, nil //nolint:nilnil // there is none
	}
}

func hostAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, errors.New("want the address of a host, such as 192.0.2.1")
	}
	return a, nil
}

// number adds a flag for a whole number that is not 0.
func number(f *pflag.FlagSet, p *int, name, what, usage string) {
	f.Var(nicflags.Value(what, "", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 {
			return errors.New("want a whole number above 0")
		}
		*p = n
		return nil
	}), name, usage)
}

// frrOf returns what FRR says of a bridge's segments; nil if they do not depend on FRR, or FRR is
// not installed.
func (a *app) frrOf(ctx context.Context, b bridge.Info) (evpn.Segments, error) {
	if b.VXLAN == nil || b.VXLAN.Static {
		return nil, nil
	}
	ns, err := netns.Open(a.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	answer, err := evpn.OfNetns(ns, a.netns).Ask(ctx)
	switch {
	case errors.Is(err, evpn.ErrNotInstalled):
		return nil, nil // another program may add the remote hosts
	case err != nil:
		return nil, err
	}
	return answer.OfAll(b.VXLAN.Segments()), nil
}

// vxlanFields describes a bridge's VXLAN device, and what FRR says of its segments.
func vxlanFields(v *bridge.VXLAN, s evpn.Segments) []field {
	if v == nil {
		return nil
	}
	by := "added by another program, such as FRR"
	if v.Static {
		by = "listed"
	}
	own := ""
	if v.Foreign {
		own = ", not made by vmnet"
	}
	which := fmt.Sprintf("VNI %d", v.VNI)
	if v.Map != nil {
		which = fmt.Sprintf("%d VNIs", len(v.Segments()))
	}
	fields := append([]field{
		{"VXLAN", fmt.Sprintf("%s, %s, %s port %d, MTU %d bytes, %s%s", v.Interface, which, v.Local, v.Port, v.MTU,
			nic.UpDown(v.Up), own)},
	}, mapFields(v)...)
	fields = append(fields, field{
		"remote hosts", fmt.Sprintf("%s (%s), %d MACs", orNone(strings.Join(v.Remotes, " ")), by, v.MACs),
	})
	if len(s) == 0 {
		return fields
	}
	return append(fields, field{"FRR", frrText(v, s)})
}

// mapFields describes which VLAN is in which segment, if there are several.
func mapFields(v *bridge.VXLAN) (fields []field) {
	if v.Map == nil {
		return nil
	}
	fields = append(fields, field{"VLANs:VNIs", orNone(v.SegmentMap().String())})
	for _, s := range v.Map {
		if s.Trouble != "" {
			fields = append(fields, field{"trouble", s.Trouble})
		}
	}
	return fields
}

func frrText(v *bridge.VXLAN, s evpn.Segments) string {
	if v.Map != nil {
		if trouble, cure := s.Trouble(); trouble != "" {
			return fmt.Sprintf("%s (%s)", strings.TrimPrefix(trouble, "FRR "), cure)
		}
		return s.String()
	}
	one := s[v.VNI]
	if trouble, cure := one.Trouble(v.VNI); trouble != "" {
		return fmt.Sprintf("%s (%s)", strings.TrimPrefix(trouble, "FRR "), cure)
	}
	return one.String()
}
