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
	f.Var(nicflags.Value("ADDRESS", "", func(s string) (err error) { v.Local, err = hostAddress(s); return err }),
		"local", "the address of this host by which the others reach it (with --vxlan)")
	f.Var(nicflags.Values("ADDRESS", func(s string) error {
		a, err := hostAddress(s)
		v.Remotes = append(v.Remotes, a)
		return err
	}), "remote", "another host of the segment (repeatable; default: those that FRR adds for EVPN)")
	number(f, &v.Port, "vxlan-port", "PORT", "UDP port of the segment (default 4789)")
	for _, name := range []string{"vxlan", "local", "remote", "vxlan-port"} {
		complete(cmd, name, cobra.FixedCompletions(nil, noFiles))
	}
	return func() (*vxlan.Config, error) {
		if f.Changed("vxlan") {
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

// frrOf returns what FRR says of a bridge's segment; nil if that does not depend on FRR, or FRR is
// not installed.
func (a *app) frrOf(ctx context.Context, b bridge.Info) (*evpn.Status, error) {
	if b.VXLAN == nil || b.VXLAN.Static {
		return nil, nil //nolint:nilnil // nothing to ask
	}
	ns, err := netns.Open(a.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	s, err := evpn.OfNetns(ns, a.netns).Ask(ctx, b.VXLAN.VNI)
	switch {
	case errors.Is(err, evpn.ErrNotInstalled):
		return nil, nil //nolint:nilnil // another program may add the remote hosts
	case err != nil:
		return nil, err
	}
	return &s, nil
}

// vxlanFields describes a bridge's VXLAN device, and what FRR says of its segment.
func vxlanFields(v *bridge.VXLAN, s *evpn.Status) []field {
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
	fields := []field{
		{"VXLAN", fmt.Sprintf("%s, VNI %d, %s port %d, MTU %d bytes, %s%s", v.Interface, v.VNI, v.Local, v.Port, v.MTU,
			nic.UpDown(v.Up), own)},
		{"remote hosts", fmt.Sprintf("%s (%s), %d MACs", orNone(strings.Join(v.Remotes, " ")), by, v.MACs)},
	}
	if s == nil {
		return fields
	}
	text := s.String()
	if trouble, cure := s.Trouble(v.VNI); trouble != "" {
		text = fmt.Sprintf("%s (%s)", strings.TrimPrefix(trouble, "FRR "), cure)
	}
	return append(fields, field{"FRR", text})
}
