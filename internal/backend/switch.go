package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/holders"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/switches"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// switchSocket is a port of a userspace switch over a stream socketpair: QEMU gets one end, the
// switch the other one. QEMU reads many frames of a stream in one system call, and waits when it is
// full.
type switchSocket struct {
	m        *Maker
	spec     nic.Spec
	files    *qmp.Files
	lifeline *lifeline
	name     string   // of the port
	near     *os.File // the switch's end, until the switch has it
}

// lifeline is a pipe whose write end every process inherits that inherits the guest's socket. The
// switch has the read end, and keeps the port while any of them is alive: with QEMU's -daemonize,
// and behind wrappers, that is another process than the one that the port was made for.
type lifeline struct {
	wanted      bool
	read, write *os.File // read: until the switch has it
}

func (l *lifeline) close() error { return errors.Join(closeFile(&l.read), closeFile(&l.write)) }

func (s *switchSocket) plan(_ context.Context, r *nic.Record) (Interface, error) {
	return s.planPort(r, nic.TypeSocket, s.spec.CheckSocket())
}

// planPort plans a NIC of that type, which has no interface. invalid is why it cannot be of it.
func (s *switchSocket) planPort(r *nic.Record, kind string, invalid error) (_ Interface, err error) {
	if invalid != nil {
		return Interface{}, step.WithStage(nic.ErrInvalid, invalid)
	}
	s.name, _ = nic.InterfaceName(s.spec.VM, s.spec.NIC)
	r.Type, r.Owner = kind, 0 // it takes no privilege, so no helper makes it
	if r.Netns, err = s.m.NS.Inode(); err != nil {
		return Interface{}, err
	}
	mtu, err := planSwitch(s.spec, r)
	return Interface{Name: s.name, MaxMTU: mtu}, err
}

// planSwitch sets in the record what the switch decides, and returns the MTU of the port in bytes.
// Each port has its own: that of Ethernet, or less if other hosts are behind one that carries less.
// The switch must answer.
func planSwitch(s nic.Spec, r *nic.Record) (mtu int, err error) {
	if r.Source, err = s.Switch.Canonical(); err != nil {
		return 0, err
	}
	r.Switch, r.Port, r.Limits = true, s.Port.String(), s.Switch.Limits()
	if s.MTU > maxTapMTU {
		return 0, fmt.Errorf("MTU %d: a switch carries at most %d bytes", s.MTU, maxTapMTU)
	}
	err = switches.With(context.Background(), r.Source, func(ctx context.Context, c *control.Client) error {
		info, err := c.Info(ctx)
		if mtu = nic.EthernetMTU; info.GuestMTU != 0 {
			mtu = min(mtu, info.GuestMTU)
		}
		return err
	})
	return cmp.Or(s.MTU, mtu), err
}

func (s *switchSocket) steps(w making) []step.Step {
	list := []step.Step{{
		Name: "socket",
		Text: "socketpair AF_UNIX SOCK_STREAM",
		Do: func(context.Context) error {
			near, far, err := endpoint.StreamFiles()
			if err != nil {
				return err
			}
			s.near, s.files.Queues = near, []*os.File{far}
			return nil
		},
		Undo: func(context.Context) error { return s.close() },
	}}
	port := portOf(w.record, s.name, w.underWay, w.pid)
	if s.lifeline.wanted {
		list = append(list, s.lifelineStep(&port))
	}
	return append(list, addPortStep(w.record.Source, &port, func(context.Context) (files []*os.File, err error) {
		if s.lifeline.wanted {
			files = append(files, s.lifeline.read)
		}
		return append(files, s.near), nil
	}))
}

func (s *switchSocket) lifelineStep(port *control.Port) step.Step {
	l := s.lifeline
	return step.Step{
		Name: "lifeline",
		Text: "pipe: the port ends when the last process that has the guest's end has ended",
		Do: func(context.Context) (err error) {
			port.Lifeline, l.read, l.write, err = control.NewLifeline()
			return err
		},
		Undo: func(context.Context) error { return l.close() },
	}
}

// verify has the switch label the port with the final record.
func (s *switchSocket) verify(_ context.Context, w making) (*inventory.Device, error) {
	path, err := control.Path(w.record.Source)
	if err != nil {
		return nil, err
	}
	var port *control.Port
	err = switches.With(context.Background(), w.record.Source,
		func(ctx context.Context, c *control.Client) error {
			ports, err := c.Ports(ctx)
			for i := range ports {
				if ports[i].Name == s.name && ports[i].Holder == w.pid {
					port = &ports[i]
					port.Label = w.final
					return c.SetLabel(ctx, s.name, w.final)
				}
			}
			return cmp.Or(err, inventory.ErrNoSwitch)
		})
	if err != nil {
		return nil, err
	}
	dev := inventory.SocketNIC(w.record, holders.OwnerOf(w.pid))
	dev.Holders = []nic.Holder{{PID: w.pid, FDs: []int{}}}
	dev.SwitchPort, dev.Alias = inventory.SwitchPort{Path: path, Port: port}, w.final
	return &dev, nil
}

func (s *switchSocket) close() error {
	errs := []error{closeFile(&s.near), s.lifeline.close()}
	for _, f := range s.files.Queues {
		errs = append(errs, f.Close())
	}
	s.files.Queues = nil
	return errors.Join(errs...)
}

// switchTap is a tap without a bridge. A userspace switch has its kernel side, through a packet
// socket that this process opens.
type switchTap struct{ hostTap }

func (s *switchTap) plan(_ context.Context, r *nic.Record) (_ Interface, err error) {
	if err := endpoint.MayOpenPacket(s.m.NS); err != nil {
		return Interface{}, fmt.Errorf("a tap for a switch: %w (--via socket needs no privilege)", err)
	}
	s.name, s.altName = s.spec.InterfaceName()
	r.Type = nic.TypeTap
	if s.mtu, err = planSwitch(s.spec, r); err != nil {
		return Interface{}, err
	}
	_, err = control.Path(r.Source)
	return Interface{Name: s.name, MaxMTU: s.mtu}, err
}

// steps label the port with the final record from the start: the link's alias alone says how far
// the attach is.
func (s *switchTap) steps(w making) []step.Step {
	port := portOf(w.record, s.name, w.final, w.pid)
	list := append(s.queueSteps(w.record.Queues), s.linkSteps(w.underWay)...)
	if !s.staysDown {
		list = append(list, step.Step{
			Name: "up",
			Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
			Do:   func(context.Context) error { return s.m.NL.Set(s.link.Index, rtnl.Up(true)) },
		})
	}
	return append(list, addPortStep(w.record.Source, &port, func(ctx context.Context) ([]*os.File, error) {
		files, slow, err := s.m.packetFiles(ctx, w.record.Source, s.name)
		port.SetSlow(slow)
		return files, err
	}))
}

func (s *switchTap) verify(ctx context.Context, w making) (*inventory.Device, error) {
	l, err := s.read()
	if err != nil {
		return nil, err
	}
	if l.Master != 0 || l.Up == w.record.Prepared {
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v, on a bridge: %v", l.Name, l.Up, l.Master != 0)
	}
	dev := &inventory.Device{Link: l, Want: w.record}
	dev.SwitchPort = s.m.ReadSwitchPort(ctx, dev)
	switch {
	case dev.SwitchPort.Err != nil:
		return nil, dev.SwitchPort.Err
	case dev.SwitchPort.Port == nil:
		return nil, inventory.ErrNoSwitch
	}
	return dev, s.finish(l, w.final)
}

// portOf returns a NIC's port as a switch is asked for it. A guest's port is never of kind
// control.Tap, for which the switch has the queues of a tap. A NIC of type socket has a port of
// kind control.Stream, and one of type vhost-user a port of kind control.VhostUser. A NIC of type
// tap has one of kind control.Packet: QEMU has the tap's queues, and the switch has a packet socket
// on the tap's kernel side.
func portOf(r nic.Record, name, label string, pid int) control.Port {
	p := control.Port{Name: name, Kind: control.Stream, Label: label, Holder: pid, Config: r.SwitchPortConfig()}
	switch r.Type {
	case nic.TypeSocket:
	case nic.TypeVhostUser:
		p.Kind, p.Queues = control.VhostUser, r.Queues
	default:
		p.Kind, p.Device = control.Packet, name
	}
	return p
}

// addPortStep plugs a port into a switch; p is read when the step runs. open opens its files, which
// the step closes when the switch has them.
func addPortStep(sw string, p *control.Port, open func(context.Context) ([]*os.File, error)) step.Step {
	tried := false
	return step.Step{
		Name: "port",
		Text: fmt.Sprintf("switch %s: add-port %s, %s, holder %d%s, label %q",
			sw, p.Name, p.Kind, p.Holder, portText(p.Config.Settings), p.Label),
		Do: func(ctx context.Context) error {
			files, err := open(ctx)
			if err != nil {
				return err
			}
			defer fdpass.CloseAll(files)
			tried = true
			err = addPort(ctx, sw, *p, files...)
			tried = !errors.Is(err, fs.ErrExist)
			return err
		},
		Undo: func(ctx context.Context) error {
			if !tried {
				return nil
			}
			return removePort(ctx, sw, p.Name)
		},
	}
}

// addPort plugs a port into a switch, for as long as its holder lives.
func addPort(ctx context.Context, sw string, p control.Port, files ...*os.File) error {
	holder, err := control.OpenHolder(p.Holder)
	if err != nil {
		return err
	}
	defer holder.Close()
	err = switches.With(ctx, sw, func(ctx context.Context, c *control.Client) error {
		return c.AddPort(ctx, p, append([]*os.File{holder}, files...)...)
	})
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %w (another guest of that name? vmnet switch show %s)", nic.ErrExist, err, sw)
	}
	return err
}

func removePort(ctx context.Context, sw, port string) error {
	err := switches.With(ctx, sw, func(ctx context.Context, c *control.Client) error {
		return c.RemovePort(ctx, port)
	})
	if errors.Is(err, control.ErrNotRunning) {
		return nil
	}
	return rtnl.IgnoreNotExist(err)
}

// ReconnectSwitch makes a NIC a port of its switch again, for as long as the guest lives that holds
// it.
func (m *Maker) ReconnectSwitch(ctx context.Context, dev *inventory.Device, pid int) error {
	files, slow, err := m.portFiles(ctx, dev, pid)
	if err != nil {
		return err
	}
	defer fdpass.CloseAll(files)
	r := dev.Want
	label, err := r.AsPlugged().Encode()
	if err != nil {
		return err
	}
	port := portOf(r, dev.Name, label, pid)
	port.SetSlow(slow)
	return addPort(ctx, r.Source, port, files...)
}

// joinSwitch makes a NIC a port of its switch, and no longer of the one that has had it.
func (m *Maker) joinSwitch(ctx context.Context, dev *inventory.Device) error {
	if err := m.leaveFormer(ctx, dev); err != nil {
		return err
	}
	return m.ReconnectSwitch(ctx, dev, dev.VMMPID())
}

// leaveFormer removes a NIC's port from the switch that it was about to leave.
func (m *Maker) leaveFormer(ctx context.Context, dev *inventory.Device) error {
	if dev.Want.Former == "" {
		return nil
	}
	former := *dev
	former.Want.Source, former.Want.Former = dev.Want.Former, ""
	former.SwitchPort = m.ReadSwitchPort(ctx, &former)
	return m.DisconnectSwitch(ctx, &former)
}

// setSwitchPort gives a NIC's port its settings. The label of a tap's port follows the record; that
// of a socket's port is the record.
func (m *Maker) setSwitchPort(ctx context.Context, dev *inventory.Device) error {
	port := dev.SwitchPort.Port.Name
	r := dev.Want
	label, err := r.AsPlugged().Encode()
	if err != nil {
		return err
	}
	return switches.With(ctx, dev.SwitchPort.Path, func(ctx context.Context, c *control.Client) error {
		if err := c.SetPort(ctx, port, r.SwitchPortConfig()); err != nil || dev.IsSocket() {
			return err
		}
		return c.SetLabel(ctx, port, label)
	})
}

// DisconnectSwitch removes a NIC's port from its switch, and from the one that it was about to
// leave. It is success if the switch or the port is gone.
func (m *Maker) DisconnectSwitch(ctx context.Context, dev *inventory.Device) error {
	if err := m.leaveFormer(ctx, dev); err != nil {
		return err
	}
	if dev.SwitchPort.Err != nil {
		return dev.SwitchPort.Err
	}
	if dev.SwitchPort.Port == nil {
		return nil
	}
	return removePort(ctx, dev.SwitchPort.Path, dev.SwitchPort.Port.Name)
}

// switchEndpoint decides what connects QEMU and the switch if the Spec leaves that open. A tap
// costs less for each byte, as its frames cross in super-frames.
func (m *Maker) switchEndpoint(spec nic.Spec) nic.By {
	switch {
	case spec.Switch.By != nic.ByAuto:
		return spec.Switch.By
	case spec.CheckSocket() != nil:
		return nic.ByTap
	case m.HelperPath != "" || endpoint.MayOpenPacket(m.NS) != nil:
		return nic.BySocket
	}
	return nic.ByTap
}

// closeFile closes a file that may be nil, or closed already.
func closeFile(f **os.File) error {
	if *f == nil {
		return nil
	}
	err := (*f).Close()
	*f = nil
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}
