package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// maySecure returns an error if this kernel cannot check the NIC's frames. Whether this process may
// have it do so, which a dry run need not, shows in the step. A switch checks the frames of its
// ports by itself.
func (h *NIC) maySecure() error {
	if h.Spec.Switch != nil || h.Record.Security.IsZero() {
		return nil
	}
	err := h.m.WithPrivilege(func() error { return bpfguard.Probe(h.Record.PortSecurity()) })
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return step.WithStage(nic.ErrLink, err)
}

// mayLimit returns an error if the NIC cannot have its rates.
func (h *NIC) mayLimit() error {
	if h.Spec.Switch != nil || h.Record.Rates.IsZero() {
		return nil
	}
	return step.WithStage(nic.ErrInvalid, ratelimit.Check(h.Interface.MaxMTU, h.Record.Rates))
}

// guestLink returns a NIC's link, which is nil if it was not made, and a socket in its netns.
type guestLink func() (*rtnl.Conn, *rtnl.Link)

// policySteps have the kernel check the guest's frames, and limit their rate. They come before a
// frame can leave the interface. Where nothing is asked for there is no step.
func (m *Maker) policySteps(name string, r nic.Record, at guestLink) (list []step.Step) {
	do := func(f func(*rtnl.Conn, *rtnl.Link) error) error {
		c, l := at()
		if l == nil {
			return nil
		}
		return m.WithPrivilege(func() error { return f(c, l) })
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

// policySteps are those of a tap.
func (s *hostTap) policySteps(w making) []step.Step {
	return s.m.policySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}

// policySteps are those of a macvtap or ipvtap in a netns of its own.
func (s *macvtapInterface) policySteps(w making) []step.Step {
	return s.m.policySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) {
		if s.dev == nil {
			return nil, nil
		}
		return s.dev.NL(), s.dev.Link
	})
}

// policySteps are those of a macvtap in the Maker's netns.
func (s *namedMacvtap) policySteps(w making) []step.Step {
	return s.m.policySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}
