package main

import (
	"kernel.org/pub/linux/libs/security/libcap/cap"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
)

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
		if err := g.Allow(gate.ForUsers, policy.Request{Bridge: profile.Bridge, Port: profile.Port, Queues: 1}); err != nil {
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
