package main

import (
	"strings"

	"github.com/spf13/pflag"

	"vmnet/bridge/brport"
	"vmnet/internal/access/bridgehelper"
	"vmnet/internal/access/policy"
	"vmnet/internal/cli/nicflags"
)

// bridgeOptions is the command line of qemu-bridge-helper, and the options that may precede it.
type bridgeOptions struct {
	bridge  string
	fd      int
	useVnet bool
	profile string
	port    brport.Settings
}

func (o *bridgeOptions) flags() *pflag.FlagSet {
	f := newFlags()
	f.StringVar(&o.bridge, "br", "", "the `BRIDGE` that the tap is put on (QEMU gives it)")
	o.fd = -1 // none
	nicflags.Number(f, &o.fd, "fd", "NUMBER", "the Unix socket over which the tap's queue is sent (QEMU gives it)")
	f.BoolVar(&o.useVnet, "use-vnet", false, "the tap has a vnet header (QEMU gives it)")
	f.StringVar(&o.profile, "profile", "", profileUsage)
	nicflags.AddPort(f, &o.port)
	return f
}

func (o *bridgeOptions) parse(args []string) error {
	for _, arg := range args {
		if err := asQEMU(arg); err != nil {
			return err
		}
	}
	f := o.flags()
	if err := parse(f, args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return usagef("argument %q: this form takes flags only", f.Arg(0))
	case o.fd < 0:
		return usagef("--fd=NUMBER is missing: the socket on which QEMU waits")
	case !f.Changed("br") && o.profile == "":
		return usagef("--br=BRIDGE is missing")
	}
	return nil
}

// asQEMU refuses notations of flags that QEMU does not use.
func asQEMU(arg string) error {
	name, value, has := strings.Cut(arg, "=")
	switch {
	case arg == "--br", arg == "--fd":
		return usagef("%s: want %s=VALUE, as QEMU gives it", arg, arg)
	case name == "--use-vnet" && has, arg == "--":
		return usagef("argument %q: not a flag of this form", arg)
	case name == "--fd" && (value == "" || strings.Trim(value, "0123456789") != ""):
		return usagef("%q: want the number of an open socket, in decimal digits", arg)
	case name == "--fd" && len(value) > 1 && value[0] == '0':
		return usagef("%q: want the number without leading zeros", arg) // they would make it octal
	}
	return nil
}

// bridgeHelper is the form that QEMU and libvirt call. Every failure has exit status 1, and sends
// nothing: QEMU takes the status as the answer.
func (a *app) bridgeHelper(args []string) error {
	if err := a.helpBridge(args); err != nil {
		a.say(err.Error())
		return errSaid
	}
	return nil
}

func (a *app) helpBridge(args []string) error {
	var o bridgeOptions
	if err := o.parse(args); err != nil {
		return err
	}
	return bridgehelper.Serve(a.p, files(), bridgehelper.Request{
		Bridge: o.bridge, Port: o.port, VnetHdr: o.useVnet, FD: o.fd, Settle: o.settle,
	})
}

// settle fills in the profile. The profile's bridge wins, since QEMU always names one, if only its
// default.
func (o *bridgeOptions) settle(p *policy.Policy, r *bridgehelper.Request) error {
	if o.profile == "" {
		return nil
	}
	from, err := p.Profile(o.profile)
	if err != nil {
		return err
	}
	if from.Bridge != "" {
		r.Bridge = from.Bridge
	}
	if r.Port.IsZero() {
		r.Port = from.Port
	}
	return nil
}

// newFlags makes an empty set of flags.
func newFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("qemu-netup", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {} // errors say where help is
	return f
}

func parse(f *pflag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return usagef("%s", strings.TrimPrefix(err.Error(), "pflag: "))
	}
	return nil
}

const profileUsage = "the `NAME` of settings in policy.yaml"
