// Package policing has the kernel check a guest's frames, filter those for it, and limit their
// rate, on a host interface.
package policing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Host is the process that does it.
type Host interface {
	// WithPrivilege runs a function with the capabilities that it needs.
	WithPrivilege(func() error) error
}

// Link returns a NIC's link, which is nil if it was not made, and a socket in its netns.
type Link func() (*rtnl.Conn, *rtnl.Link)

// Check returns an error if this kernel cannot do what the record wants, with frames of an MTU of
// up to maxMTU bytes. Whether this process may have it done, which a dry run need not, shows in the
// step.
func Check(h Host, r nic.Record, maxMTU int) error {
	return cmp.Or(
		step.WithStage(nic.ErrLink, maySecure(h, r)),
		step.WithStage(nic.ErrInvalid, mayLimit(r, maxMTU)))
}

func maySecure(h Host, r nic.Record) error {
	if r.Security.IsZero() && r.AllowIn.IsZero() {
		return nil
	}
	err := h.WithPrivilege(func() error {
		return cmp.Or(bpfguard.Probe(r.PortSecurity()), bpfguard.ProbeInbound(r.Inbound()))
	})
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

func mayLimit(r nic.Record, maxMTU int) error {
	if r.Rates.IsZero() {
		return nil
	}
	return ratelimit.Check(maxMTU, r.Rates)
}

// Steps come before a frame can leave the interface of that name. There is none where nothing is
// asked for.
func Steps(h Host, name string, r nic.Record, at Link) (list []step.Step) {
	do := func(f func(*rtnl.Conn, *rtnl.Link) error) error {
		c, l := at()
		if l == nil {
			return nil
		}
		return h.WithPrivilege(func() error { return f(c, l) })
	}
	if cfg := r.PortSecurity(); !cfg.IsZero() {
		list = append(list, step.Step{
			Name: "port security",
			Text: fmt.Sprintf("BPF_PROG_LOAD; RTM_NEWTFILTER %s: %s", name, cfg),
			Do: func(context.Context) error {
				return do(func(c *rtnl.Conn, l *rtnl.Link) error { return bpfguard.Attach(c, l, cfg) })
			},
			Undo: func(context.Context) error { return do(bpfguard.Detach) },
		})
	}
	if cfg := r.Inbound(); !cfg.IsZero() {
		allow := func(cfg inbound.Config) func(context.Context) error {
			return func(context.Context) error {
				return do(func(c *rtnl.Conn, l *rtnl.Link) error { return bpfguard.AllowIn(c, l, cfg) })
			}
		}
		list = append(list, step.Step{
			Name: "allow in",
			Text: fmt.Sprintf("BPF_PROG_LOAD; RTM_NEWTFILTER %s, both directions: allow in %s", name, cfg),
			Do:   allow(cfg),
			Undo: allow(inbound.Config{}),
		})
	}
	if !r.Rates.IsZero() {
		set := func(cfg portrate.Config) func(context.Context) error {
			return func(context.Context) error {
				return do(func(c *rtnl.Conn, l *rtnl.Link) error { return ratelimit.Set(c, l, cfg) })
			}
		}
		list = append(list, step.Step{
			Name: "rates",
			Text: fmt.Sprintf("RTM_NEWQDISC %s: tbf; BPF_PROG_LOAD; RTM_NEWTFILTER: %s", name, r.Rates),
			Do:   set(r.Rates),
			Undo: set(portrate.Config{}),
		})
	}
	return list
}
