package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// releaseWait bounds how long a released tap may take to go.
const releaseWait = 5 * time.Second

// release makes QEMU let go of a device that is not plugged, and waits until it is
// gone. The caller has made sure that nobody else holds it.
func (m *Manager) release(ctx context.Context, vm vmm, o *ours) error {
	if o != nil && !o.hasLink() {
		return m.releaseSocket(ctx, vm, o)
	}
	err := m.letGo(o, vm.process(), func() error { return vm.giveBack(ctx, o) })
	if err != nil {
		return err
	}
	now, err := m.anew(ctx, o)
	if err != nil || now == nil {
		return err
	}
	if now.free() {
		return m.delete(now) // a persistent one
	}
	if m.waitGoneFor(ctx, o, undoWait) == nil {
		return nil
	}
	tried := vm.elsewhere(ctx, o)
	return errors.Join(m.waitGoneFor(ctx, o, releaseWait), tried)
}

// releaseSocket does so where there is no link: port and label say whether it is gone.
func (m *Manager) releaseSocket(ctx context.Context, vm vmm, o *ours) error {
	err := errors.Join(vm.giveBack(ctx, o), m.leave(ctx, o))
	if err != nil {
		return err
	}
	now, err := m.anew(ctx, o)
	if err != nil || now == nil {
		return err
	}
	tried := vm.elsewhere(ctx, o)
	if now, err = m.anew(ctx, o); err != nil || now == nil {
		return err
	}
	return errors.Join(fmt.Errorf("%w: NIC %s, by process %d", nic.ErrInUse, o.Name, now.vmm()), tried)
}

// letGo runs what makes a VMM let go of a device. A macvtap is then deleted, since the kernel would
// do so only some time later, and its address and lower would be taken until then.
func (m *Manager) letGo(o *ours, pid int, release func() error) error {
	if o == nil || o.in == nil {
		return release()
	}
	ns, err := netns.OpenHeld(*o.in)
	if err != nil { // it is going already
		return release()
	}
	defer ns.Close()
	if err := release(); err != nil {
		return err
	}
	fds, err := macvtap.QueuesOf(pid, ns, o.Link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(fds) > 0 { // QEMU keeps it until the guest lets go
		return err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	return rtnl.IgnoreNotExist(nl.Delete(o.Index))
}

func (m *Manager) waitGoneFor(ctx context.Context, o *ours, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return m.waitGone(ctx, o)
}

// mayRelease tells whether a device that is not plugged into the guest whose lock we
// hold may be taken away: an error names the process that uses it.
func (m *Manager) mayRelease(ctx context.Context, o *ours, vm vmm) error {
	now, err := m.anew(ctx, o)
	if err != nil || now == nil {
		return err
	}
	for _, h := range now.holders {
		if h.PID != vm.process() {
			return fmt.Errorf("%w: interface %s, which process %d holds", nic.ErrInUse, o.Name, h.PID)
		}
	}
	return vm.alive() // its number means it
}

// waitGone waits until a link is gone from its netns, or with it.
func (m *Manager) waitGone(ctx context.Context, o *ours) error {
	for {
		there, err := m.there(ctx, o)
		if err != nil || !there {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interface %s is still %w: it goes when QEMU answers and lets go of it, or by vmnet reconcile: %w", o.Name, nic.ErrInUse, context.Cause(ctx))
		case <-time.After(pollEvery):
		}
	}
}

// there tells whether a link still exists. Who closes its netns last is of no matter: a VMM
// that was started with the fd can keep that without the link.
func (m *Manager) there(ctx context.Context, o *ours) (bool, error) {
	if !o.hasLink() {
		now, err := m.anew(ctx, o)
		return now != nil, err
	}
	err := m.on(o, func(nl *rtnl.Conn) error {
		_, err := nl.LinkByIndex(o.Index)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
