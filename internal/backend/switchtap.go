package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// switchTap is a tap on no bridge: a userspace switch has its kernel side, by a packet socket that
// this process opens.
type switchTap struct {
	bridgeTap
	source string
	path   string // of the switch's control socket
	record nic.Record
}

func (s *switchTap) Plan(ctx context.Context, r *nic.Record) (err error) {
	if err := endpoint.MayOpenPacket(s.m.NS); err != nil {
		return fmt.Errorf("a tap for a switch: %w (--via socket takes no right)", err)
	}
	s.name, s.altName = s.Spec.InterfaceName()
	s.mtu = switchMTU(s.Spec)
	r.Type = nic.TypeTap
	if err := planSwitch(s.Spec, r); err != nil {
		return err
	}
	s.path, err = control.Path(r.Source)
	return err
}

func (s *switchTap) steps(pid int, alias string, queues int) []step.Step {
	s.record, _ = nic.ParseRecord(alias)
	s.record.Phase = nic.PhasePlugged
	s.source = s.record.Source
	port := portOf(s.record, s.name, s.portLabel(), pid)
	list := append(s.queueSteps(queues), s.linkSteps(alias)...)
	return append(list, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do:   func(context.Context) error { return s.m.NL.Set(s.Link.Index, rtnl.Up(true)) },
	}, addPortStep(s.source, s.name, &port, func(ctx context.Context) ([]*os.File, error) { return s.m.packetFiles(ctx, s.name) }))
}

// portLabel is the same before and after: the link's alias alone tells how far the attach is.
func (s *switchTap) portLabel() string {
	text, _ := s.record.Encode()
	return text
}

// claimWait bounds how long a switch may take to let go of the port of a tap of that name that was
// there before.
const claimWait = time.Second

// packetFiles are those of a switch's port by a device.
func (m *Maker) packetFiles(ctx context.Context, device string) ([]*os.File, error) {
	deadline := time.Now().Add(claimWait)
	for {
		files, err := endpoint.PacketFiles(m.NS, device)
		switch {
		case err == nil:
			return files, nil
		case !errors.Is(err, syscall.EEXIST) || time.Now().After(deadline):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}

func (s *switchTap) Verify(ctx context.Context, _ int, alias string) (*inventory.Device, error) {
	l, err := s.m.NL.LinkByIndex(s.Link.Index)
	if err != nil {
		return nil, fmt.Errorf("the tap is gone, QEMU did not keep it: %w", err)
	}
	if l.Master != 0 || !l.Up {
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v, on a bridge: %v", l.Name, l.Up, l.Master != 0)
	}
	dev := &inventory.Device{Link: l, Want: s.record}
	dev.SwitchPort = s.m.ReadSwitchPort(ctx, dev)
	switch {
	case dev.SwitchPort.Err != nil:
		return nil, dev.SwitchPort.Err
	case dev.SwitchPort.Port == nil:
		return nil, inventory.ErrNoSwitch
	}
	return dev, s.finish(l, alias)
}

// ReconnectSwitch makes a tap a port of its switch again, which lives as long as the guest that
// holds the tap.
func (m *Maker) ReconnectSwitch(ctx context.Context, dev *inventory.Device, pid int) error {
	files, err := m.packetFiles(ctx, dev.Name)
	if err != nil {
		return err
	}
	defer fdpass.CloseAll(files)
	r := dev.Want
	r.Phase = nic.PhasePlugged
	label, err := r.Encode()
	if err != nil {
		return err
	}
	return addPort(ctx, r.Source, portOf(r, dev.Name, label, pid), files...)
}
