package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What libvirt is handed by name must outlive our own fds until libvirt has opened it. So it breaks
// the law of lifetime for as long as that takes, a macvtap for good: detach, the hook's release,
// watch or reconcile removes it.

// namedTap is a tap on a bridge that libvirt, or whoever is uid, opens by its name.
type namedTap struct {
	bridgeTap
	uid int
}

// HandOverTo names the user who opens a tap by its name; 0 for root.
func (h *NIC) HandOverTo(uid int) {
	if tap, ok := h.Device.(*namedTap); ok {
		tap.uid = uid
	}
}

// steps end with a persistent tap that nobody holds: a single-queue one can be opened but once, and
// of another a queue of ours would get frames.
func (s *namedTap) steps(_ int, alias string, queues int) []step.Step {
	s.multi, s.byName = queues > 1, true
	tap := s.tapStep()
	tap.Do = s.outOfTheWay(tap.Do)
	list := append([]step.Step{tap}, s.portSteps(alias)...)
	return append(list, step.Step{
		Name: "persist",
		Text: fmt.Sprintf("TUNSETPERSIST 1 on %s; close it", s.name),
		Do: func(context.Context) error {
			return errors.Join(s.tap.Persist(s.uid), s.tap.Close())
		},
		Undo: func(ctx context.Context) error { return s.m.RemoveNamed(ctx, s.Link) },
	})
}

func (s *namedTap) queues() []*os.File { return nil }

// indexTries is how many interface indices a tap may get that have a node in the way.
const indexTries = 64

// outOfTheWay makes the tap with an index of which there is no macvtap's node in /dev.
func (s *namedTap) outOfTheWay(do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for try := 1; ; try++ {
			if err := do(ctx); err != nil {
				return err
			}
			node := macvlan.NodeInTheWay(s.Link)
			if node == "" {
				return nil
			}
			if try == indexTries {
				return fmt.Errorf("%w: %s is there, and %d before it, of macvtaps in other netns: libvirt would open that for %s (find who makes them: lsns -t net)", nic.ErrExist, node, try-1, s.name)
			}
			if err := errors.Join(s.tap.Close(), s.m.WaitGoneFor(ctx, &inventory.Device{Link: s.Link}, UndoWait)); err != nil {
				return err
			}
		}
	}
}

// namedMacvtap is a macvtap in the Manager's netns, which libvirt opens by /dev/tap<index>.
type namedMacvtap struct {
	macvtapDevice
	link *rtnl.Link
}

func (s *namedMacvtap) queues() []*os.File { return nil }
func (s *namedMacvtap) netns() *os.File    { return nil }
func (s *namedMacvtap) Close() error       { return nil }

func (s *namedMacvtap) steps(_ int, alias string, _ int) []step.Step {
	l := s.spec.Lower
	list := []step.Step{{
		Name: string(l.Kind),
		Text: fmt.Sprintf("RTM_NEWLINK %s: %s mode %s on %s, alias %q", s.name, l.Kind, l.Mode, l.Device, alias),
		Do:   func(ctx context.Context) error { return s.create(ctx, alias) },
		Undo: func(ctx context.Context) error { return s.m.RemoveNamed(ctx, s.link) },
	}, s.settingsStep(""), {
		Name: "node",
		Text: fmt.Sprintf("see that %s has its node in /dev", s.name),
		Do:   func(context.Context) error { return macvlan.MakeNode(s.m.NS, s.link) },
	}}
	return append(append(list, s.altNameSteps()...), step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do: func(ctx context.Context) error {
			return s.m.Retry(ctx, s.lower, func() error { return macvlan.Up(s.m.NL, s.link) })
		},
	})
}

// settingsStep sets what the link was not made with: attrs too, of which more is the text.
func (s *namedMacvtap) settingsStep(more string, attrs ...rtnl.Attr) step.Step {
	all := s.spec.Lower.AllMulti()
	return step.Step{
		Name: "settings",
		Text: fmt.Sprintf("RTM_SETLINK %s: inet6 addr_gen_mode none, allmulti %s%s", s.name, nic.OnOff(all), more),
		Do: func(context.Context) error {
			return s.m.NL.SetQuiet(s.link.Index, append(attrs, rtnl.AllMulti(all))...)
		},
	}
}

func (s *namedMacvtap) altNameSteps() []step.Step {
	if s.altName == "" {
		return nil
	}
	return []step.Step{{
		Name: "altname",
		Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
		Do:   func(context.Context) error { return s.m.NL.AddAltName(s.link.Index, s.altName) },
	}}
}

func (s *namedMacvtap) create(ctx context.Context, alias string) error {
	return s.m.Retry(ctx, s.lower, func() (err error) {
		s.link, err = macvlan.CreateNamed(s.m.NL, s.lower, s.config(), alias)
		return err
	})
}

func (s *namedMacvtap) Verify(_ context.Context, _ int, alias string) (*inventory.Device, error) {
	l, err := s.m.NL.LinkByIndex(s.link.Index)
	if err != nil {
		return nil, fmt.Errorf("the macvtap is gone: %w", err)
	}
	if !l.Up {
		return nil, fmt.Errorf("somebody set %s down meanwhile", l.Name)
	}
	return &inventory.Device{Link: l}, s.m.NL.Set(l.Index, rtnl.Alias(alias))
}

// RemoveNamed removes a link that was made to be handed over by name, at once where nobody holds
// it. One that a VMM holds already goes with that: a macvtap cannot, and stays for reconcile.
func (m *Maker) RemoveNamed(ctx context.Context, l *rtnl.Link) error {
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ReleaseWait)
	defer cancel()
	for {
		err := m.tryDrop(ctx, l.Index)
		if !errors.Is(err, nic.ErrInUse) || ctx.Err() != nil {
			return err
		}
		select { // whoever held it may have let go of it, or who has opened it be seen
		case <-ctx.Done():
			return err
		case <-time.After(inventory.PollEvery):
		}
	}
}

func (m *Maker) tryDrop(ctx context.Context, index int) error {
	now, err := m.NL.LinkByIndex(index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	dev := &inventory.Device{Link: now}
	if now.Tun != nil && now.Tun.Attached {
		return m.clearPersistOfHolder(ctx, dev)
	}
	if err := m.waitUnheld(ctx, dev); err != nil {
		return err
	}
	return m.Delete(dev)
}

// Delete removes a link in the Manager's netns that nobody holds, and with it the node that we may
// have made. A tap that somebody has opened meanwhile goes with that one.
func (m *Maker) Delete(dev *inventory.Device) error {
	if dev.IsSocket() {
		return m.DisconnectSwitch(context.Background(), dev)
	}
	if dev.Tun != nil {
		return m.removePersistent(dev)
	}
	number, err := macvlan.Number(m.NS, dev.Link)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if err := rtnl.IgnoreNotExist(m.NL.Delete(dev.Index)); err != nil {
		return err
	}
	return macvlan.RemoveNode(dev.Link, number)
}

// removePersistent removes a persistent tap, where there is the device to do that with; else it is
// deleted as any link.
func (m *Maker) removePersistent(dev *inventory.Device) error {
	err := tun.Expire(m.NS, dev.Name, dev.Tun.MultiQueue)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: interface %s: %w", nic.ErrInUse, dev.Name, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EINVAL):
		return rtnl.IgnoreNotExist(m.NL.Delete(dev.Index))
	}
	return err
}

// clearPersistOfHolder takes persistence off a tap through whoever holds it.
func (m *Maker) clearPersistOfHolder(ctx context.Context, dev *inventory.Device) error {
	all, err := m.Devices(ctx)
	if err != nil {
		return err
	}
	for _, now := range all {
		if now.NetnsFile == nil && now.Index == dev.Index && len(now.Holders) > 0 {
			return m.ClearPersist(&now, now.Holders[0].PID)
		}
	}
	return fmt.Errorf("%w: interface %s, by whom cannot be seen", nic.ErrInUse, dev.Name)
}

// ClearPersist makes a persistent tap live exactly as long as the process that holds it. A macvtap
// cannot.
func (m *Maker) ClearPersist(dev *inventory.Device, pid int) error {
	inode, err := m.NS.Inode()
	if err != nil || dev.Tun == nil || !dev.Tun.Persist {
		return err
	}
	err = tun.Unpersist(pid, dev.Name, inode)
	if node := macvlan.NodeInTheWay(dev.Link); errors.Is(err, fs.ErrNotExist) && node != "" {
		err = fmt.Errorf("%w (libvirt has opened %s in its place, of a macvtap in another netns)", err, node)
	}
	return err
}

// waitUnheld waits until no process that is seen holds a macvtap in the Manager's netns.
func (m *Maker) waitUnheld(ctx context.Context, dev *inventory.Device) error {
	for {
		all, err := m.Devices(ctx)
		if err != nil {
			return err
		}
		held := 0
		for _, now := range all {
			if now.NetnsFile == nil && now.Index == dev.Index && len(now.Holders) > 0 {
				held = now.Holders[0].PID
			}
		}
		if held == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: interface %s, which process %d holds: %w", nic.ErrInUse, dev.Name, held, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}
