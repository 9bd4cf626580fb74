package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/kernel/bpfguard"
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

// securitySteps have the kernel check the guest's frames. They come before a frame can leave the
// interface. For a NIC without port security there is no step. at returns the link, and a socket in
// its netns; the link is nil if it was not made.
func (m *Maker) securitySteps(name string, r nic.Record, at func() (*rtnl.Conn, *rtnl.Link)) []step.Step {
	cfg := r.PortSecurity()
	if cfg.IsZero() {
		return nil
	}
	do := func(f func(*rtnl.Conn, *rtnl.Link) error) error {
		c, l := at()
		if l == nil {
			return nil
		}
		return m.WithPrivilege(func() error { return f(c, l) })
	}
	return []step.Step{{
		Name: "port security",
		Text: fmt.Sprintf("BPF_PROG_LOAD; RTM_NEWTFILTER %s: %s", name, cfg),
		Do: func(context.Context) error {
			return do(func(c *rtnl.Conn, l *rtnl.Link) error { return bpfguard.Attach(c, l, cfg) })
		},
		Undo: func(context.Context) error { return do(bpfguard.Detach) },
	}}
}

// securitySteps are those of a tap.
func (s *hostTap) securitySteps(w making) []step.Step {
	return s.m.securitySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}

// securitySteps are those of a macvtap or ipvtap in a netns of its own.
func (s *macvtapInterface) securitySteps(w making) []step.Step {
	return s.m.securitySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) {
		if s.dev == nil {
			return nil, nil
		}
		return s.dev.NL(), s.dev.Link
	})
}

// securitySteps are those of a macvtap in the Maker's netns.
func (s *namedMacvtap) securitySteps(w making) []step.Step {
	return s.m.securitySteps(s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}
