package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/bridge"
	"vmnet/internal/rtnl"
	"vmnet/internal/step"
	"vmnet/internal/tun"
	"vmnet/vhost"
)

// steps is an attach from the first device to the last check, in order. It is
// what a run does and undoes, a dry run prints, and tests break.
func (a *attachment) steps() []step.Step {
	var list []step.Step
	if a.left != nil {
		list = append(list, a.releaseStep())
	}
	list = append(list, inStage(ErrLink, a.hostSteps()...)...)
	list = append(list, inStage(ErrHandover, a.vm.PlugSteps(a.nic)...)...)
	return append(list, a.closeStep(), a.verifyStep())
}

func (a *attachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("take back what a crash left of %s in the guest", a.left.Name),
		Do:   func(ctx context.Context) error { return a.m.release(ctx, a.vm, a.left) },
	}
}

// hostSteps make the tap, put it on the bridge, and open vhost-net.
func (a *attachment) hostSteps() []step.Step {
	list := []step.Step{a.tapStep()}
	for i := 1; i < a.record.Queues; i++ {
		list = append(list, step.Step{
			Name: fmt.Sprintf("queue %d", i),
			Text: fmt.Sprintf("open %s; TUNSETIFF %s: queue %d", tun.Device, a.name, i),
			Do:   func(context.Context) error { return a.openQueue() },
		})
	}
	list = append(list, a.settingsStep())
	if a.altName != "" {
		list = append(list, a.altNameStep())
	}
	list = append(list, a.portStep())
	for i := range a.nic.Vhosts {
		list = append(list, a.vhostStep(i))
	}
	return list
}

// undoWait bounds how long an undo watches for the tap to go: it goes at once, unless
// QEMU does not answer and so still holds it.
const undoWait = time.Second

func (a *attachment) tapStep() step.Step {
	flags := "IFF_TAP|IFF_NO_PI|IFF_VNET_HDR|IFF_TUN_EXCL"
	if a.record.Queues > 1 {
		flags += "|IFF_MULTI_QUEUE"
	}
	return step.Step{
		Name: "tap",
		Text: fmt.Sprintf("open %s; TUNSETIFF %s %s", tun.Device, a.name, flags),
		Do: func(context.Context) (err error) {
			a.tap, err = tun.Create(a.m.ns, a.name, a.record.Queues > 1)
			if err != nil {
				return a.explainTaken(err)
			}
			copy(a.nic.Queues, a.tap.Queues())
			a.link, err = a.m.nl.Link(a.name)
			return err
		},
		// Closing our queues removes the tap, once QEMU has given back its own.
		Undo: func(ctx context.Context) error {
			if a.tap == nil {
				return nil
			}
			err := a.tap.Close()
			if a.link == nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, undoWait)
			defer cancel()
			return errors.Join(err, a.m.waitGone(ctx, a.link.Index))
		},
	}
}

// explainTaken tells who has the name.
func (a *attachment) explainTaken(err error) error {
	l, readErr := a.m.nl.Link(a.name)
	if readErr != nil {
		return err
	}
	owner := "which vmnet did not make"
	if r, ok := parseAlias(l.Alias); ok {
		owner = fmt.Sprintf("which is %s/%s", r.VM, r.NIC)
	}
	return fmt.Errorf("%w: %w: interface %s, %s (use another --nic)", ErrExist, err, l.Name, owner)
}

func (a *attachment) openQueue() error {
	if err := a.tap.AddQueue(); err != nil {
		return err
	}
	copy(a.nic.Queues, a.tap.Queues())
	return nil
}

// settingsStep comes before the tap's fds go anywhere, so that whoever finds the
// link can tell whose it is.
func (a *attachment) settingsStep() step.Step {
	mac := hostMAC(a.spec.MAC)
	return step.Step{
		Name: "settings",
		Text: fmt.Sprintf("RTM_SETLINK %s: address %s, mtu %d, inet6 addr_gen_mode none, alias %q", a.name, mac, a.br.MTU, a.alias),
		Do: func(context.Context) error {
			attrs := []rtnl.Attr{rtnl.Alias(a.alias), rtnl.MAC(mac), rtnl.MTU(a.br.MTU)}
			err := a.m.nl.Set(a.link.Index, append(attrs, rtnl.NoIPv6Autoconf())...)
			if noIPv6(err) {
				err = a.m.nl.Set(a.link.Index, attrs...)
			}
			return err
		},
	}
}

func (a *attachment) altNameStep() step.Step {
	return step.Step{
		Name: "altname",
		Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", a.name, a.altName),
		Do:   func(context.Context) error { return a.m.nl.AddAltName(a.link.Index, a.altName) },
	}
}

func (a *attachment) portStep() step.Step {
	return step.Step{
		Name: "port",
		Text: fmt.Sprintf("RTM_SETLINK %s: master %s, up", a.name, a.br.Name),
		Do:   func(context.Context) error { return bridge.AddPort(a.m.nl, a.br, a.link) },
	}
}

func (a *attachment) vhostStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("vhost %d", i),
		Text: fmt.Sprintf("open %s: queue %d", vhost.Device, i),
		Do: func(context.Context) error {
			f, err := vhost.Open()
			if err != nil {
				return err
			}
			a.vhosts = append(a.vhosts, f)
			a.nic.Vhosts[i] = f
			return nil
		},
		Undo: func(context.Context) error { return a.closeVhosts() },
	}
}

func (a *attachment) closeVhosts() error {
	var errs []error
	for _, f := range a.vhosts {
		errs = append(errs, f.Close())
	}
	a.vhosts = nil
	return errors.Join(errs...)
}

// closeStep leaves the tap to QEMU: from here on it lives as long as QEMU holds it.
func (a *attachment) closeStep() step.Step {
	return step.Step{
		Name: "close",
		Text: "close our copies of the fds",
		Do:   func(context.Context) error { return errors.Join(a.tap.Close(), a.closeVhosts()) },
	}
}

// verifyStep reads back from the kernel what should be, and only then says in
// the alias that the NIC is plugged.
func (a *attachment) verifyStep() step.Step {
	a.record.Phase = plugged
	alias, err := a.record.encode()
	return step.Step{
		Name: "verify",
		Text: fmt.Sprintf("RTM_GETLINK %s: is it there, up and on %s; RTM_SETLINK: alias %q", a.name, a.br.Name, alias),
		Do: func(context.Context) error {
			if err != nil {
				return err
			}
			l, err := a.m.nl.LinkByIndex(a.link.Index)
			if err != nil {
				return in(ErrHandover, fmt.Errorf("the tap is gone, QEMU did not keep it: %w", err))
			}
			if l.Master != a.br.Index || !l.Up {
				return in(ErrLink, fmt.Errorf("somebody changed %s meanwhile: up is %v, its bridge was changed: %v", l.Name, l.Up, l.Master != a.br.Index))
			}
			a.link = l
			attrs := []rtnl.Attr{rtnl.Alias(alias)}
			if want := hostMAC(a.spec.MAC); l.MAC.String() != want.String() {
				attrs = append(attrs, rtnl.MAC(want)) // udev's MACAddressPolicy was quicker
			}
			return a.m.nl.Set(l.Index, attrs...)
		},
	}
}
