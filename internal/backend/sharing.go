package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vmnet/internal/endpoint"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/switches"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// sharedGuest is a port of a userspace switch that the guest's memory is shared with (vhost-user).
// QEMU listens on a socket, to which this process connects, for a guest that runs. A guest that is
// yet to start is connected to by its switch.
type sharedGuest struct {
	switchSocket
	nic *NIC
	uid int // of QEMU
}

// sharedRing is the size of the guest's rings: the largest that virtio-net of QEMU has, since a
// super-frame takes up to 18 of the descriptors.
const sharedRing = "1024"

func (s *sharedGuest) plan(_ context.Context, r *nic.Record) (Interface, error) {
	return s.planPort(r, nic.TypeVhostUser, s.spec.CheckVhostUser())
}

// ShareWith decides where QEMU, which is process pid of that user, listens for the switch. It
// returns an error if the switch must not have the guest's memory. PlanDevice has been called.
func (h *NIC) ShareWith(pid, uid int, hasKVM bool) error {
	s, ok := h.host.(*sharedGuest)
	if !ok {
		return errors.New("the NIC has another host interface")
	}
	if err := s.m.mayShare(h.Record.Source, uid); err != nil {
		return err
	}
	s.uid = uid
	dir := endpoint.FrontendDir(uid, os.Getenv("XDG_RUNTIME_DIR"))
	h.Device.Socket = endpoint.FrontendSocket(dir, pid, h.Device.ID)
	options := map[string]string{"rx_queue_size": sharedRing, "tx_queue_size": sharedRing}
	if !hasKVM {
		maps.Copy(options, qmp.WithoutKVM())
	}
	maps.Copy(options, h.Device.Options)
	h.Device.Options = options
	return h.Device.Validate()
}

// Sharing says who else may share memory.
type Sharing struct {
	// MayShare returns nil if a switch of user owner may have the memory of a guest of user uid,
	// or why it may not; nil: none may but that user's own and root's.
	MayShare func(uid, owner int) error
}

// mayShare returns an error unless a switch may have the memory of a guest of that user: it is that
// user's, or root's, or the policy permits it.
func (m *Maker) mayShare(sw string, uid int) error {
	owner, err := switches.Owner(sw)
	if err != nil || owner == 0 || owner == uid {
		return err
	}
	why := errors.New("run the switch as that user or root")
	if m.MayShare != nil {
		if why = m.MayShare(uid, owner); why == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: switch %s is uid %d's, and the guest uid %d's: %w", fs.ErrPermission, sw, owner, uid, why)
}

func (s *sharedGuest) steps(w making) []step.Step {
	path := s.nic.Device.Socket
	list := []step.Step{{
		Name: "directory",
		Text: fmt.Sprintf("mkdir -m 700 %s, of user %d", filepath.Dir(path), s.uid),
		Do:   func(context.Context) error { return endpoint.MakeFrontendDir(filepath.Dir(path), s.uid) },
		Undo: func(context.Context) error { return s.close() },
	}}
	port := portOf(w.record, s.name, w.underWay, w.pid)
	if s.lifeline.wanted {
		port.Device = path
		return append(list, s.lifelineStep(&port),
			addPortStep(w.record.Source, &port, func(context.Context) ([]*os.File, error) {
				dir, err := endpoint.StreamDirectory(path)
				return []*os.File{s.lifeline.read, dir}, err
			}))
	}
	list = append(list, s.nic.Listen...)
	return append(list, addPortStep(w.record.Source, &port, func(ctx context.Context) ([]*os.File, error) {
		f, err := endpoint.ConnectFrontend(ctx, path, w.pid)
		if err != nil {
			return nil, err
		}
		if s.near, err = fdpass.Duplicate(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return []*os.File{f}, nil
	}))
}

// StandIn serves the guest in place of its switch until end is called. QEMU answers nobody while it
// waits for a switch that has ended, or that is paused.
func (h *NIC) StandIn(context.Context) (end func()) {
	s, ok := h.host.(*sharedGuest)
	if !ok || s.near == nil {
		return func() {}
	}
	_ = endpoint.HangUp(s.near) // it may be so already
	return endpoint.StandIn(h.Device.Socket, h.Device.Queues)
}

// StandInFor is StandIn for NICs of process pid that have lost their switches. It returns nil if
// QEMU listens for none.
func (m *Maker) StandInFor(ctx context.Context, pid int, nics []inventory.Device) (end func()) {
	var ends []func()
	for _, dev := range nics {
		if !dev.HasLostMemory() {
			continue
		}
		if f, err := endpoint.FindFrontend(ctx, pid, nic.DeviceID(dev.Want.NIC)); err == nil {
			ends = append(ends, endpoint.StandInOn(f, dev.Want.Queues))
		}
	}
	if ends == nil {
		return nil
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// portFiles returns the files of the port that a switch has lost of a NIC: a packet socket of its
// tap, or a connection to QEMU, process pid, which waits for a switch to share memory with.
func (m *Maker) portFiles(ctx context.Context, dev *inventory.Device, pid int) (files []*os.File, slow, err error) {
	if dev.Want.Type != nic.TypeVhostUser {
		return m.packetFiles(ctx, dev.Want.Source, dev.Name)
	}
	if err := m.mayShare(dev.Want.Source, dev.UID); err != nil {
		return nil, nil, err
	}
	f, err := endpoint.FindFrontend(ctx, pid, nic.DeviceID(dev.Want.NIC))
	if err != nil {
		return nil, nil, err
	}
	return []*os.File{f}, nil, nil
}

// claimWait bounds how long a switch may take to release the port of a former tap of the same name.
const claimWait = time.Second

// packetFiles returns the files of a switch's port on a device. slow says why they are without a
// fast path, if the switch takes one.
func (m *Maker) packetFiles(ctx context.Context, sw, device string) (files []*os.File, slow, err error) {
	deadline := time.Now().Add(claimWait)
	fast := switches.TakesFastPath(ctx, sw)
	for {
		files, slow, err = endpoint.FastPacketFiles(m.NS, device, fast)
		switch {
		case err == nil:
			return files, slow, nil
		case !errors.Is(err, syscall.EEXIST) || time.Now().After(deadline):
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}
