package main

import (
	"cmp"
	"context"

	"vmnet/internal/access/bridgehelper"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

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

// request returns what the policy decides about for a NIC.
func request(s nic.Spec) policy.Request {
	r := policy.Request{Guest: s.VM, Bridge: s.Bridge, Port: s.Port, MAC: s.MAC, Queues: s.Queues}
	if l := s.Lower; l != nil {
		r.Lower, r.Kind, r.Addrs = l.Device, l.Kind, l.Addrs
		r.Mode = cmp.Or(l.Mode, vtap.Modes(l.Kind)[0])
	}
	return r
}
