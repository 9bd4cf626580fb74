package nsport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"syscall"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
	"vmnet/step"
)

// Attached is the result of an attach.
type Attached struct {
	Info
	Changed bool     // something was changed
	Notices []string // what the user should know although it is no error
}

// Attach gives a namespace an interface. The same attach again changes nothing, except that it
// mends what differs and completes one that was interrupted; another one of the same ID is an error
// that matches nic.ErrExist. An inconsistent Spec is one that matches nic.ErrInvalid. A failed
// attach leaves everything as it was.
func (m *Manager) Attach(ctx context.Context, s Spec) (done Attached, err error) {
	if err := s.Validate(); err != nil {
		return done, err
	}
	t, err := openTarget(ctx, s.Netns)
	if err != nil {
		return done, err
	}
	defer t.close()
	unlock, err := m.lock(ctx)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	j := &job{m: m, t: t, spec: s}
	defer j.close()
	if err := j.plan(ctx); err != nil {
		return done, fmt.Errorf("attach netns %s: %w", s.Netns, err)
	}
	done.Notices = j.notices
	steps := j.steps()
	if len(steps) > 0 || m.DryRun {
		if err := m.Run.Do(ctx, steps); err != nil {
			return done, fmt.Errorf("attach netns %s: %w", s.Netns, err)
		}
	}
	if m.DryRun {
		return done, nil
	}
	_, all, err := m.look(ctx, t)
	if err != nil {
		return done, err
	}
	now := byID(all, j.rec.ID, t)
	if now == nil {
		return done, fmt.Errorf("attach netns %s: somebody removed %s meanwhile", s.Netns, j.rec.Interface)
	}
	done.Info, done.Changed = m.describe(*now), len(steps) > 0
	return done, nil
}

// making is what the steps of a job have in their hands.
type making struct {
	staging *netns.NS  // where the end is made; nil before and after
	snl     *rtnl.Conn // in staging
	index   int        // of the end in staging; for a macvlan, also in the namespace
	isMoved bool       // the end is no longer in staging
	host    *rtnl.Link // a veth pair's end here
	end     *rtnl.Link // the end in the namespace, once it is there
}

func (k *making) close() {
	if k.snl != nil {
		k.snl.Close()
		k.snl = nil
	}
	if k.staging != nil {
		_ = k.staging.Close() // the kernel removes what is still in it
		k.staging = nil
	}
}

// steps returns what is left to do.
func (j *job) steps() []step.Step {
	if j.have != nil && !j.have.Unfinished {
		return j.mendSteps()
	}
	var list []step.Step
	if j.have != nil {
		list = append(list, step.Step{
			Name: "leftover",
			Text: fmt.Sprintf("RTM_DELLINK %s: an interrupted attach left it", j.have.Interface),
			Do:   func(context.Context) error { return j.m.remove(j.have) },
		})
	}
	if j.rec.Type == Veth {
		list = append(list, j.pairStep(), j.portStep())
	} else {
		list = append(list, j.childStep())
	}
	list = append(list, j.moveStep())
	for _, a := range j.rec.Addresses {
		list = append(list, j.addressStep(a))
	}
	list = append(list, j.upStep())
	for _, g := range j.rec.Gateways {
		list = append(list, j.routeStep(g))
	}
	return append(list, j.recordStep())
}

// underWay is the record while the attach is under way.
func (j *job) underWay() string {
	r := j.rec
	r.Unfinished = true
	return r.String()
}

// stage makes the namespace in which an end is made and set up before the users of the other one
// see it. If this process is killed, the kernel removes it with all that is in it.
func (j *job) stage() (err error) {
	if j.staging, err = netns.New(); err != nil {
		return fmt.Errorf("%w (needs CAP_SYS_ADMIN)", err)
	}
	if j.snl, err = rtnl.Open(j.staging); err != nil {
		return err
	}
	// By their ids the ends are found again.
	return errors.Join(j.m.nl().AssignNetnsID(j.staging), j.m.nl().AssignNetnsID(j.t.ns))
}

func (j *job) pairStep() step.Step {
	name, mac := j.hostName(), stablemac.HostMAC(j.rec.MAC)
	return step.Step{
		Name: "pair",
		Text: fmt.Sprintf(
			"unshare(CLONE_NEWNET); RTM_NEWLINK %s: veth, address %s, mtu %d, alias %q; peer %s in that netns: "+
				"address %s",
			name,
			mac,
			j.mtu,
			j.underWay(),
			j.rec.Interface,
			j.rec.MAC,
		),
		Do: func(context.Context) error {
			if err := j.stage(); err != nil {
				return err
			}
			nl, index := j.m.nl(), rtnl.RandomIndex()
			err := nl.CreateWithAlias(
				Veth,
				index,
				j.underWay(),
				rtnl.Name(name),
				rtnl.MAC(mac),
				rtnl.MTU(j.mtu),
				rtnl.VethPeer(j.rec.Interface, j.staging, rtnl.MAC(j.rec.MAC), rtnl.MTU(j.mtu)),
			)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%w: interface %s (ip link show %[2]s; name another --id)", err, name)
			}
			if err != nil {
				return bridges.Explain(err)
			}
			if j.host, err = nl.LinkByIndex(index); err != nil {
				return err
			}
			j.index = j.host.Lower
			return nl.SetQuiet(index)
		},
		Undo: func(context.Context) error { return j.undo() },
	}
}

// undo removes what there is of a new attachment.
func (j *job) undo() (err error) {
	switch {
	case j.host != nil:
		err = j.m.nl().Delete(j.host.Index)
	case j.isMoved:
		if l, readErr := j.t.nl.LinkByIndex(j.index); readErr == nil && l.Kind == j.rec.Type {
			err = j.t.nl.Delete(j.index)
		}
	case j.snl != nil && j.index != 0: // at once: with its namespace, it would go later
		err = j.snl.Delete(j.index)
	}
	j.close()
	return rtnl.IgnoreNotExist(err)
}

func (j *job) portStep() step.Step {
	with := ""
	if !j.spec.Port.IsZero() {
		with = " with " + j.spec.Port.String()
	}
	return step.Step{
		Name: "port",
		Text: fmt.Sprintf("RTM_SETLINK %s: master %s%s, up", j.hostName(), j.place.Name, with),
		Do: func(context.Context) error {
			r := j.rec
			r.Unfinished = j.have == nil || j.have.Unfinished
			return bridges.AddPort(j.m.nl(), j.place, j.host, j.spec.Port, rtnl.Alias(r.String()))
		},
	}
}

func (j *job) childStep() step.Step {
	attrs := []rtnl.Attr{rtnl.Name(j.rec.Interface), rtnl.Lower(j.place.Index), rtnl.MTU(j.mtu)}
	what := fmt.Sprintf("mode %s on %s, mtu %d", j.rec.Mode, j.place.Name, j.mtu)
	if j.rec.Type == IPVlan {
		attrs = append(attrs, macvlan.IPVlanMode(j.rec.Mode))
	} else {
		attrs = append(attrs, macvlan.Mode(j.rec.Mode), rtnl.MAC(j.rec.MAC))
		what += ", address " + j.rec.MAC.String()
	}
	return step.Step{
		Name: j.rec.Type,
		Text: fmt.Sprintf(
			"unshare(CLONE_NEWNET); RTM_NEWLINK %s in that netns: %s %s, alias %q",
			j.rec.Interface,
			j.rec.Type,
			what,
			j.underWay(),
		),
		Do: func(ctx context.Context) error {
			if err := j.stage(); err != nil {
				return err
			}
			j.index = rtnl.RandomIndex()
			attrs := append(slices.Clone(attrs), rtnl.Netns(j.staging), rtnl.Index(j.index))
			err := j.m.maker.Retry(ctx, j.place, func() error { return j.m.nl().Create(j.rec.Type, attrs...) })
			if err != nil {
				return macvlan.Explain(j.m.nl(), err, vtap.Kind(j.rec.Type), j.place)
			}
			return j.snl.Set(j.index, rtnl.Alias(j.underWay()))
		},
		Undo: func(context.Context) error { return j.undo() },
	}
}

// moveStep makes the end appear in the namespace, complete but for what cannot be moved.
func (j *job) moveStep() step.Step {
	return step.Step{
		Name: "move",
		Text: fmt.Sprintf("RTM_SETLINK %s: to netns %s", j.rec.Interface, j.t.name),
		Do: func(context.Context) error {
			attrs := rtnl.MoveTo(j.t.ns, j.index)
			if j.host != nil { // its index is known from the other end
				attrs = attrs[:1]
			}
			err := j.snl.Set(j.index, attrs...)
			switch {
			case errors.Is(err, fs.ErrExist):
				return j.taken(err)
			case errors.Is(err, syscall.EPERM):
				return fmt.Errorf(
					"%w (needs CAP_NET_ADMIN in the user namespace that owns netns %s)",
					err,
					j.t.name,
				)
			case err != nil:
				return err
			}
			j.isMoved = true
			j.close()
			j.end, err = j.moved()
			return err
		},
	}
}

// moved reads the end in the namespace, whose users may do with it what they want.
func (j *job) moved() (*rtnl.Link, error) {
	index := j.index
	if j.host != nil {
		l, err := j.m.nl().LinkByIndex(j.host.Index)
		if err != nil {
			return nil, err
		}
		index = l.Lower
	}
	l, err := j.t.nl.LinkByIndex(index)
	if err == nil && (l.Kind != j.rec.Type || j.host != nil && l.Lower != j.host.Index ||
		j.host == nil && l.Lower != j.place.Index) {
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf(
			"%s is no longer in netns %s: somebody there has removed it: %w",
			j.rec.Interface,
			j.t.name,
			err,
		)
	}
	return l, err
}

func (j *job) addressStep(a netip.Prefix) step.Step {
	return step.Step{
		Name: "address " + a.String(),
		Text: fmt.Sprintf("RTM_NEWADDR %s in netns %s: %s", j.rec.Interface, j.t.name, a),
		Do: func(context.Context) error {
			err := j.t.nl.AddAddr(j.end.Index, a)
			if a.Addr().Is6() && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EOPNOTSUPP)) {
				return fmt.Errorf("%w (IPv6 is disabled in netns %s: there sysctl net.ipv6.conf.all.disable_ipv6=0)",
					err, j.t.name)
			}
			return err
		},
		Undo: func(context.Context) error {
			if j.have == nil || j.have.Unfinished || j.end == nil { // it goes with its link
				return nil
			}
			return rtnl.IgnoreNotExist(j.t.nl.DeleteAddr(j.end.Index, a))
		},
	}
}

func (j *job) upStep() step.Step {
	return step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s in netns %s: up", j.rec.Interface, j.t.name),
		Do: func(ctx context.Context) error {
			up := func() error { return j.t.nl.Set(j.end.Index, rtnl.Up(true)) }
			if j.rec.Type == Veth {
				return up()
			}
			return macvlan.Explain(j.m.nl(), j.m.maker.Retry(ctx, j.place, up), vtap.Kind(j.rec.Type), j.place)
		},
	}
}

func (j *job) routeStep(router netip.Addr) step.Step {
	return step.Step{
		Name: "route by " + router.String(),
		Text: fmt.Sprintf("RTM_NEWROUTE in netns %s: default via %s", j.t.name, router),
		Do: func(context.Context) error {
			err := j.t.nl.AddDefaultRoute(router, j.end.Index)
			if errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) ||
				errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("%w (no address is in the subnet of the router)", err)
			}
			return err
		},
	}
}

// recordStep says that the attachment is complete.
func (j *job) recordStep() step.Step {
	text := j.rec.String()
	return step.Step{
		Name: "record",
		Text: fmt.Sprintf("RTM_SETLINK: alias %q", text),
		Do: func(context.Context) error {
			if j.host != nil {
				return j.m.nl().Set(j.host.Index, rtnl.Alias(text))
			}
			return j.t.nl.Set(j.end.Index, rtnl.Alias(text))
		},
	}
}
