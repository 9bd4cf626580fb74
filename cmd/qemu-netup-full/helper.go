package main

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/spf13/pflag"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge/brport"
	"vmnet/internal/access/bridgehelper"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
	"vmnet/internal/backend"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/tun"
	"vmnet/tapmgr/nic"
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
	r := bridgehelper.Request{
		Bridge: o.bridge, Port: o.port, VnetHdr: o.useVnet, FD: o.fd, Settle: o.settle, MakeOVS: a.makeOVS,
	}
	h, err := bridgehelper.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if mayUseOVS(h, o.profile, r.Bridge) {
		a.p.Reserve(cap.DAC_OVERRIDE) // for Open vSwitch's database
	}
	return h.Serve(a.p, files(), r)
}

// mayUseOVS reports whether a NIC may need the database of Open vSwitch. Which bridge a profile
// means is known only once the policy has been read.
func mayUseOVS(h *bridgehelper.Helper, profile, bridge string) bool {
	return profile != "" || h.OnOVS(bridge)
}

func (a *app) makeOVS(r bridgehelper.Request) (tap *tun.Tap, err error) {
	err = a.manager(func(m *backend.Maker) (err error) {
		tap, err = m.MakePlainOVS(context.Background(), r.Bridge, r.OVSDB, r.Port, r.VnetHdr)
		return err
	})
	return tap, err
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
	r.Bridge = cmp.Or(from.Bridge, from.Network, r.Bridge) // a network's bridge has its name
	if r.Port.IsZero() {
		r.Port = from.Port
	}
	r.OVSDB = from.OVSDB
	return nil
}

// serve makes the tap for one vmnet attach of a user without privilege. Only vmnet attach calls it.
func (a *app) serve(args []string) error {
	f := newFlags()
	f.Bool("attach", false, "")
	fd := f.Int("fd", -1, "")
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() > 0 || *fd < 0 {
		return usagef("--attach --fd=NUMBER is for vmnet attach only (run vmnet attach)")
	}
	a.p.Reserve(cap.BPF, cap.PERFMON, cap.DAC_OVERRIDE) // for port security, and Open vSwitch's database
	sock, err := bridgehelper.Socket(a.p, *fd)
	if err != nil {
		return err
	}
	defer sock.Close()
	return a.manager(func(m *backend.Maker) error {
		g, err := a.openGate(m)
		if err != nil {
			return err
		}
		asked := false
		err = m.Serve(context.Background(), sock, func(s nic.Spec) error {
			if asked {
				return g.Still()
			}
			asked = true
			return g.Allow(gate.ForUsers, request(s))
		})
		if err != nil {
			return errSaid // reported to vmnet attach over the socket
		}
		return nil
	})
}

// await waits until the port of a caller's NIC on Open vSwitch forwards, whose database only root
// may ask. Only vmnet attach calls it.
func (a *app) await(args []string) error {
	f := newFlags()
	tap := f.String("await", "", "")
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() > 0 || *tap == "" {
		return usagef("--await=INTERFACE is for vmnet attach only (run vmnet attach --wait)")
	}
	a.p.Reserve(cap.DAC_OVERRIDE)
	if err := errors.Join(a.p.Confine(cap.NET_ADMIN), privilege.CloseInherited()); err != nil {
		return err
	}
	return a.manager(func(m *backend.Maker) error { return m.AwaitOwn(context.Background(), *tap) })
}

// interfaceArg returns the only argument that QEMU gives its scripts, and drops the privileges that
// they do not need.
func (a *app) interfaceArg(args []string) (string, error) {
	f := newFlags()
	if err := parse(f, args); err != nil {
		return "", err
	}
	if f.NArg() != 1 {
		return "", usagef("%d arguments: want the name of one tap, as QEMU gives it", f.NArg())
	}
	return f.Arg(0), a.p.Confine(cap.NET_ADMIN)
}

// ifUp is QEMU's script=: it puts the tap on the bridge that the policy has for its name.
func (a *app) ifUp(args []string) error {
	name, err := a.interfaceArg(args)
	if err != nil {
		return err
	}
	return a.manager(func(m *backend.Maker) error {
		g, err := a.openGate(m)
		if err != nil {
			return err
		}
		profile := g.Policy().Script(name)
		g.CountLater = true // the tap itself counts, once, even if it is put there again
		if err := g.Allow(gate.ForUsers,
			policy.Request{Bridge: profile.Bridge, Port: profile.Port, Queues: 1}); err != nil {
			return err
		}
		return m.IfUp(name, profile.Bridge, profile.Port, g.Still)
	})
}

// ifDown is QEMU's downscript=.
func (a *app) ifDown(args []string) error {
	name, err := a.interfaceArg(args)
	if err != nil {
		return err
	}
	return a.manager(func(m *backend.Maker) error { return m.IfDown(name) })
}
