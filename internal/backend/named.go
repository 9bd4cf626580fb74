package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/policing"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// An interface that libvirt opens by its name must outlive this process's files until libvirt has
// opened it. So it is an exception to the rule that an interface ends with its last file: a tap
// until then, a macvtap for good. Detach, the hook's release, watch or reconcile removes it.

// ReleaseWait bounds how long a released interface may take to go.
const ReleaseWait = 5 * time.Second

// namedTap is a tap that libvirt, or another process of the Opener, opens by its name.
type namedTap struct{ placedTap }

// steps end with a persistent tap that nobody holds: a tap with one queue can be opened only once,
// and on a tap with several, a queue that stayed open here would receive frames.
func (s *namedTap) steps(w making) []step.Step {
	multi := w.record.Queues > 1
	list := append([]step.Step{s.createStep(multi, func(ctx context.Context) error { return s.create(ctx, multi) })},
		s.linkSteps(w.underWay)...)
	list = append(list, s.policing(w)...)
	list = append(list, s.put(&s.hostTap, w)...)
	return append(list, step.Step{
		Name: "persist",
		Text: fmt.Sprintf("TUNSETPERSIST 1 on %s; close it", s.name),
		Do: func(context.Context) error {
			return errors.Join(s.tap.Persist(w.opener), s.tap.Close())
		},
		Undo: func(ctx context.Context) error { return s.m.RemoveNamed(ctx, s.link) },
	})
}

// verify raises a tap whose link is down only now, without its carrier, which the kernel turns on
// when a process opens a queue (tun_set_iff in drivers/net/tun.c).
func (s *namedTap) verify(ctx context.Context, w making) (*inventory.Device, error) {
	if w.record.LinkDown {
		err := s.m.NL.Set(s.link.Index, rtnl.Carrier(false))
		if err == nil {
			err = s.m.NL.Set(s.link.Index, rtnl.Up(true))
		}
		if err != nil {
			return nil, fmt.Errorf("%s, without a carrier: %w", s.name, err)
		}
	}
	return s.placedTap.verify(ctx, w)
}

// indexTries is how many interface indices are tried while /dev has a macvtap's node for each.
const indexTries = 64

// create makes the tap with an index that nobody can have guessed (rtnl.RandomIndex), and of which
// no macvtap has its node in /dev: libvirt would open that node.
func (s *namedTap) create(ctx context.Context, multi bool) error {
	for try := 1; ; try++ {
		if err := s.take(tun.CreateAt(s.m.NS, s.name, multi, rtnl.RandomIndex())); err != nil {
			return err
		}
		node := macvlan.NodeInTheWay(s.link)
		if node == "" {
			return nil
		}
		if try == indexTries {
			return fmt.Errorf(
				"%w: %s is there, and %d before it, of macvtaps in other netns: libvirt would open that for %s "+
					"(find who makes them: lsns -t net)", nic.ErrExist, node, try-1, s.name)
		}
		gone := &inventory.Device{Link: s.link}
		if err := errors.Join(s.tap.Close(), s.m.WaitGoneFor(ctx, gone, UndoWait)); err != nil {
			return err
		}
	}
}

// namedMacvtap is a macvtap in the Maker's netns, which libvirt opens by /dev/tap<index>.
type namedMacvtap struct {
	macvtapInterface
	link *rtnl.Link // nil until it is there
}

func (s *namedMacvtap) steps(w making) []step.Step {
	l := s.spec.Lower
	list := []step.Step{{
		Name: string(l.Kind),
		Text: fmt.Sprintf("RTM_NEWLINK %s: %s mode %s on %s, alias %q", s.name, l.Kind, l.Mode, l.Device, w.underWay),
		Do:   func(ctx context.Context) error { return s.create(ctx, w.underWay) },
		Undo: func(ctx context.Context) error { return s.m.RemoveNamed(ctx, s.link) },
	}, s.linkStep(""), {
		Name: "node",
		Text: fmt.Sprintf("see that %s has its node in /dev", s.name),
		Do:   func(context.Context) error { return macvlan.MakeNode(s.m.NS, s.link) },
	}}
	list = append(append(list, s.altNameSteps()...), s.policing(w)...)
	if !w.record.IsUp() {
		return list
	}
	return append(list, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do: func(ctx context.Context) error {
			return s.m.Retry(ctx, s.parent, func() error { return macvlan.Up(s.m.NL, s.link) })
		},
	})
}

func (s *namedMacvtap) create(ctx context.Context, alias string) error {
	return s.m.Retry(ctx, s.parent, func() (err error) {
		s.link, err = macvlan.CreateNamed(s.m.NL, s.parent, s.config(), alias)
		return err
	})
}

// linkStep sets what the link was not made with; more describes the further attrs.
func (s *namedMacvtap) linkStep(more string, attrs ...rtnl.Attr) step.Step {
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

func (s *namedMacvtap) verify(_ context.Context, w making) (*inventory.Device, error) {
	l, err := s.m.NL.LinkByIndex(s.link.Index)
	if err != nil {
		return nil, fmt.Errorf("the macvtap is gone: %w", err)
	}
	if l.Up != w.record.IsUp() {
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v", l.Name, l.Up)
	}
	return &inventory.Device{Link: l}, s.m.NL.Set(l.Index, rtnl.Alias(w.final))
}

// RemoveNamed removes a link that was made to be opened by its name, at once if nobody holds it. A
// tap that a VMM holds already goes with the VMM; a macvtap that one holds stays for reconcile.
func (m *Maker) RemoveNamed(ctx context.Context, l *rtnl.Link) error {
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ReleaseWait)
	defer cancel()
	for {
		err := m.tryRemove(ctx, l.Index)
		if !errors.Is(err, nic.ErrInUse) || ctx.Err() != nil {
			return err
		}
		select { // its holder may close it, or a process that has just opened it become visible
		case <-ctx.Done():
			return err
		case <-time.After(inventory.PollEvery):
		}
	}
}

func (m *Maker) tryRemove(ctx context.Context, index int) error {
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

// Delete removes a link in the Maker's netns that nobody holds, and with it the node that vmnet may
// have made; of a NIC over a socket, the port. A tap that a process has opened meanwhile goes with
// that process.
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

// removePersistent makes a tap end with its last queue. If the tun device is not there for that, it
// deletes the link.
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

// clearPersistOfHolder makes a tap end with the process that holds it.
func (m *Maker) clearPersistOfHolder(ctx context.Context, dev *inventory.Device) error {
	pid, err := m.holderOf(ctx, dev)
	switch {
	case err != nil:
		return err
	case pid == 0:
		return fmt.Errorf("%w: interface %s, by a process that cannot be seen", nic.ErrInUse, dev.Name)
	}
	return m.ClearPersist(dev, pid)
}

// holderOf returns a process that holds an interface of the Maker's netns; 0 if none is seen.
func (m *Maker) holderOf(ctx context.Context, dev *inventory.Device) (pid int, err error) {
	all, err := m.Devices(ctx)
	if err != nil {
		return 0, err
	}
	for _, now := range all {
		if now.NetnsFile == nil && now.Index == dev.Index && len(now.Holders) > 0 {
			return now.Holders[0].PID, nil
		}
	}
	return 0, nil
}

// ClearPersist makes a persistent tap end with the process that holds it. That cannot be done to a
// macvtap.
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

// waitUnheld waits until no process that is seen holds an interface of the Maker's netns.
func (m *Maker) waitUnheld(ctx context.Context, dev *inventory.Device) error {
	for {
		pid, err := m.holderOf(ctx, dev)
		if err != nil || pid == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: interface %s, which process %d holds: %w",
				nic.ErrInUse, dev.Name, pid, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}

func (s *namedMacvtap) policing(w making) []step.Step {
	return policing.Steps(s.m, s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}
