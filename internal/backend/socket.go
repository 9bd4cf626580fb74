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
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// switchSocket is a port of a userspace switch by a datagram socketpair: QEMU gets one end, the
// switch the other one.
type switchSocket struct {
	m      *Maker
	spec   nic.Spec
	name   string     // of the port
	record nic.Record // as it is when it is plugged
	pid    int        // of the guest's VMM, known when the steps run

	tag       *os.File // the label
	near, far *os.File // the switch's end, until that has it, and QEMU's

	lifeline lifeline // of a NIC that is made at launch
}

// lifeline keeps a port for those who inherit the guest's socket from the process that it was made
// for: QEMU's -daemonize, and wrappers, go on in another one.
type lifeline struct {
	wanted      bool
	inode       uint64
	read, write *os.File // the switch's end, until that has it, and QEMU's
}

func (s *switchSocket) Plan(_ context.Context, r *nic.Record) error {
	if err := s.spec.CheckSocket(); err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	s.name, _ = nic.InterfaceName(s.spec.VM, s.spec.NIC)
	r.Type, r.Owner = nic.TypeSocket, 0 // who attaches makes it with his own rights
	var err error
	if r.Netns, err = s.m.NS.Inode(); err != nil {
		return err
	}
	return planSwitch(s.spec, r)
}

// planSwitch fills in what the record says of a switch, which must answer.
func planSwitch(s nic.Spec, r *nic.Record) (err error) {
	if r.Source, err = s.Switch.Canonical(); err != nil {
		return err
	}
	r.Switch, r.Port, r.Limits = true, s.Port.String(), s.Switch.Limits()
	if mtu := switchMTU(s); mtu > maxTapMTU {
		return fmt.Errorf("MTU %d: a switch carries at most %d bytes", mtu, maxTapMTU)
	}
	return inventory.WithSwitch(context.Background(), r.Source, func(ctx context.Context, c *control.Client) error {
		_, err := c.Info(ctx)
		return err
	})
}

// switchMTU is what a port of a switch carries: each has its own.
func switchMTU(s nic.Spec) int { return cmp.Or(s.MTU, nic.EthernetMTU) }

func (s *switchSocket) maxMTU() int            { return switchMTU(s.spec) }
func (s *switchSocket) bridgeLink() *rtnl.Link { return nil }
func (s *switchSocket) InterfaceName() string  { return s.name }
func (s *switchSocket) netns() *os.File        { return nil }
func (s *switchSocket) label() *os.File        { return s.tag }
func (s *switchSocket) queues() (q []*os.File) {
	if s.far != nil {
		q = append(q, s.far)
	}
	return q
}

func (s *switchSocket) steps(pid int, alias string, _ int) []step.Step {
	s.pid = pid
	s.record, _ = nic.ParseRecord(alias)
	s.record.Phase = nic.PhasePlugged
	text, _ := s.record.Encode() // shorter than alias
	list := []step.Step{
		{
			Name: "label",
			Text: fmt.Sprintf("memfd_create %q, for QEMU to hold", text),
			Do:   func(context.Context) (err error) { s.tag, err = procfd.NewLabel(text); return err },
			Undo: func(context.Context) error { return closeFile(&s.tag) },
		},
		{
			Name: "socket",
			Text: "socketpair AF_UNIX SOCK_DGRAM",
			Do:   func(context.Context) (err error) { s.near, s.far, err = endpoint.SocketFiles(); return err },
			Undo: func(context.Context) error { return errors.Join(closeFile(&s.near), closeFile(&s.far)) },
		},
	}
	port := portOf(s.record, s.name, alias, pid)
	if s.lifeline.wanted {
		list = append(list, s.lifelineStep(&port))
	}
	return append(list, addPortStep(s.record.Source, s.name, &port, func(context.Context) (files []*os.File, err error) {
		if s.lifeline.wanted {
			files = append(files, s.lifeline.read)
		}
		return append(files, s.near), nil
	}))
}

func (s *switchSocket) lifelineStep(port *control.Port) step.Step {
	l := &s.lifeline
	return step.Step{
		Name: "lifeline",
		Text: "pipe, whose end with the last process that has the guest's one is the port's end",
		Do: func(context.Context) (err error) {
			l.inode, l.read, l.write, err = control.NewLifeline()
			port.Lifeline = l.inode
			return err
		},
		Undo: func(context.Context) error { return l.Close() },
	}
}

func (l *lifeline) Close() error { return errors.Join(closeFile(&l.read), closeFile(&l.write)) }

// portOf is a NIC's port as a switch is asked for it.
func portOf(r nic.Record, name, label string, pid int) control.Port {
	p := control.Port{Name: name, Kind: control.Socket, Label: label, Holder: pid, Config: r.SwitchPortConfig()}
	if r.Type != nic.TypeSocket {
		p.Kind, p.Device = control.Packet, name
	}
	return p
}

// addPortStep plugs a port into a switch; p is read when the step runs. open opens its files, which
// are closed when the switch has them.
func addPortStep(sw, name string, p *control.Port, open func(context.Context) ([]*os.File, error)) step.Step {
	tried := false
	return step.Step{
		Name: "port",
		Text: fmt.Sprintf("switch %s: add-port %s, %s, holder %d%s, label %q", sw, name, p.Kind, p.Holder, portText(p.Config.Settings), p.Label),
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
			return removePort(ctx, sw, name)
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
	err = inventory.WithSwitch(ctx, sw, func(ctx context.Context, c *control.Client) error {
		return c.AddPort(ctx, p, append([]*os.File{holder}, files...)...)
	})
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %w (another guest of that name? vmnet switch show %s)", nic.ErrExist, err, sw)
	}
	return err
}

// closeFile closes a file that may not be there, or be closed.
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

func (s *switchSocket) Close() error {
	return errors.Join(closeFile(&s.near), closeFile(&s.far), closeFile(&s.tag), s.lifeline.Close())
}

// Verify has the switch say in the label that the NIC is plugged.
func (s *switchSocket) Verify(ctx context.Context, pid int, alias string) (*inventory.Device, error) {
	path, err := control.Path(s.record.Source)
	if err != nil {
		return nil, err
	}
	var port *control.Port
	err = inventory.WithSwitch(context.Background(), s.record.Source, func(ctx context.Context, c *control.Client) error {
		ports, err := c.Ports(ctx)
		for i := range ports {
			if ports[i].Name == s.name && ports[i].Holder == pid {
				port = &ports[i]
				port.Label = alias
				return c.SetLabel(ctx, s.name, alias)
			}
		}
		return cmp.Or(err, inventory.ErrNoSwitch)
	})
	if err != nil {
		return nil, err
	}
	dev := inventory.SocketNIC(s.record, inventory.OwnerOf(pid))
	dev.Holders, dev.SwitchPort, dev.Alias = []nic.Holder{{PID: pid, FDs: []int{}}}, inventory.SwitchPort{Path: path, Port: port}, alias
	return &dev, nil
}
