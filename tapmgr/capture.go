package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/sniff"
	"vmnet/tapmgr/nic"
)

// A CapturePlace is where a NIC's frames can be captured: at a port of a userspace switch, or at
// the host interface.
type CapturePlace struct {
	NIC nic.NIC
	// Switch is the control socket of the NIC's switch, and Port the NIC's port there; both are
	// empty for a NIC that is on none.
	Switch, Port string
	// Socket is a packet socket (packet(7)) that receives the interface's frames, which the caller
	// owns; nil for a NIC on a switch.
	Socket *os.File
	// Reversed says that the frames that the interface sends come from the guest, as a macvtap's
	// do.
	Reversed bool
}

// OpenCapture finds a guest's NIC, of any kind, and opens where its frames can be captured. An
// empty id means the guest's only NIC. For a NIC that is not on a switch it takes CAP_NET_RAW.
func (m *Manager) OpenCapture(ctx context.Context, vm, id string) (CapturePlace, error) {
	s, err := m.sight(ctx, vm, id)
	if err != nil {
		return CapturePlace{}, fmt.Errorf("capture %s: %w", strings.TrimSuffix(vm+"/"+id, "/"), err)
	}
	p := CapturePlace{NIC: s.NIC, Reversed: !nic.HasTap(s.Type)}
	fail := func(format string, args ...any) (CapturePlace, error) {
		return CapturePlace{}, fmt.Errorf("capture %s/%s: "+format, append([]any{s.VM, s.ID}, args...)...)
	}
	dev := &s.device
	switch {
	case s.Switch && dev.SwitchPort.Err != nil:
		return fail("its switch was not asked: %w", dev.SwitchPort.Err)
	case s.Switch && dev.SwitchPort.Port == nil:
		return fail("its switch %s has ended or has lost it (vmnet reconcile)", s.Source)
	case s.Switch:
		p.Switch, p.Port = dev.SwitchPort.Path, dev.SwitchPort.Port.Name
		return p, nil
	case s.State == nic.Hidden:
		return fail("nobody is seen to hold the namespace of %s (run it as root)", s.Interface)
	case dev.Link == nil || !dev.HasLink():
		return fail("it has no host interface any longer")
	}
	err = m.host.Within(dev, func(ns *netns.NS, _ *rtnl.Conn) (err error) {
		p.Socket, err = sniff.Open(ns, dev.Index)
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w (run it as root: capturing takes CAP_NET_RAW)", err)
	}
	if err != nil {
		return fail("%w", err)
	}
	return p, nil
}

// sight finds one NIC of a guest, among them those that libvirt has made itself.
func (m *Manager) sight(ctx context.Context, vm, id string) (Sighting, error) {
	all, err := m.sightings(ctx, vm)
	if err != nil {
		return Sighting{}, err
	}
	return only(all, id, func(s Sighting) nic.NIC { return s.NIC })
}
