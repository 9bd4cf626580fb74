package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/vmm/qemu"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// ovsPlace is a bridge of Open vSwitch. The row of the port outlives the tap: TidyOVS removes it.
type ovsPlace struct {
	br   *ovs.Bridge // nil if only the helper may know it
	link *rtnl.Link  // the bridge's local port
	cfg  ovs.Config  // but for the tap, which is not there yet
}

// ovsPlaceOf returns the bridge of Open vSwitch whose local port is l.
func (m *Maker) ovsPlaceOf(ctx context.Context, spec nic.Spec, l *rtnl.Link) (place, error) {
	if m.HelperPath != "" { // the helper asks the database, which the caller may not
		return &ovsPlace{link: l}, nil
	}
	p := &ovsPlace{link: l}
	err := m.UseOVS(ctx, spec.OVSDB, func(c *ovs.Conn) (err error) {
		p.br, err = c.Bridge(ctx, l.Name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s is no Linux bridge but a %s device, as of a bridge of Open vSwitch: %w",
			l.Name, l.Kind, err)
	}
	return p, nil
}

func (p *ovsPlace) planPlace(ctx context.Context, s *hostTap, r *nic.Record) (i Interface, err error) {
	if err := ovs.CheckSettings(s.spec.Port); err != nil {
		return i, step.WithStage(nic.ErrInvalid, err)
	}
	r.Type, r.Source, r.Port = nic.TypeOVS, p.link.Name, s.spec.Port.String()
	// The local port's MTU follows that of the others, and limits none of them.
	i.MaxMTU = p.link.MTU
	if s.spec.MTU != 0 {
		i.MaxMTU = min(s.spec.MTU, maxTapMTU)
	}
	if p.br == nil {
		return i, nil
	}
	if p.br.Datapath == ovs.Userspace {
		if err := p.planUserspace(s, r); err != nil {
			return i, step.WithStage(nic.ErrInvalid, err)
		}
		i.Notices = append(i.Notices, fmt.Sprintf("%s forwards in user space (datapath type %s), which completes "+
			"no checksums: the guest's NIC has no offloads", p.br.Name, p.br.Datapath))
	}
	if p.br.IsOVNs && s.spec.Prepared {
		i.Notices = append(i.Notices, fmt.Sprintf("OVN binds the port now: requested-chassis of %s must name this "+
			"host and the one that the guest comes from, which would fight for it (ovn-nbctl)", r.OVSIfaceID()))
	}
	owner, err := s.m.OVSOwner(*r, 0)
	if err != nil {
		return i, err
	}
	p.cfg = configOf(*r, s.name, owner)
	return i, s.m.UseOVS(ctx, s.spec.OVSDB, func(c *ovs.Conn) error { return c.CheckName(ctx, s.name, owner.Place) })
}

// planUserspace refuses what a bridge that forwards in user space would silently ignore: it takes
// frames from the tap by a packet socket, before the kernel's checks and limits.
func (p *ovsPlace) planUserspace(s *hostTap, r *nic.Record) error {
	cure := fmt.Sprintf("%s forwards in user space, and takes the guest's frames before the kernel checks them "+
		"(Open vSwitch or OVN can)", p.br.Name)
	switch {
	case !r.Security.IsZero():
		return fmt.Errorf("--port-security would have no effect: %s", cure)
	case !r.AllowIn.IsZero():
		return fmt.Errorf("--allow-in would not see what the guest asks for: %s", cure)
	case !r.Rates.IsZero():
		return fmt.Errorf("--rate-up and --rate-down would have no effect: %s", cure)
	case s.spec.Via == nic.ViaLibvirt && s.spec.IsVirtio():
		return fmt.Errorf("%s forwards in user space, and completes no offloads as libvirt's virtio NICs have "+
			"(<model type='e1000e'/>, or --via monitor)", p.br.Name)
	}
	s.bare = true
	return nil
}

// configOf returns what the port of a NIC should be.
func configOf(r nic.Record, tap string, owner ovs.Owner) ovs.Config {
	return ovs.Config{
		Name: tap, Settings: r.PortConfig(), Owner: owner, IfaceID: r.OVSIfaceID(), MAC: r.MAC.String(),
	}
}

func (p *ovsPlace) put(s *hostTap, w making) []step.Step {
	tried := false
	cfg := func() ovs.Config {
		cfg := p.cfg
		cfg.Owner.Link, cfg.VMID = s.link.Index, uuidOf(w.pid)
		return cfg
	}
	port := step.Step{
		Name: "port",
		Text: fmt.Sprintf("OVSDB transact: insert Port %s of %s%s, iface-id %s; wait for ovs-vswitchd", s.name,
			p.br.Name, portText(s.spec.Port), p.cfg.IfaceID),
		Do: func(ctx context.Context) error {
			return s.m.UseOVS(ctx, s.spec.OVSDB, func(c *ovs.Conn) error {
				tried = true
				return c.Add(ctx, p.br, cfg())
			})
		},
		Undo: func(ctx context.Context) error {
			if !tried {
				return nil
			}
			return s.m.UseOVS(ctx, s.spec.OVSDB, func(c *ovs.Conn) error {
				return c.Withdraw(ctx, s.name, cfg().Owner)
			})
		},
	}
	list := append([]step.Step{port}, s.ratesAgain(w)...)
	if s.staysDown {
		return list
	}
	return append(list, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do:   func(context.Context) error { return s.m.NL.Set(s.link.Index, rtnl.Up(true)) },
	})
}

// ratesAgain sets the rates of a tap that has just become a port: Open vSwitch removes the root
// qdisc of a new port that it has no QoS row for (iface_configure_qos in vswitchd/bridge.c).
func (s *hostTap) ratesAgain(w making) []step.Step {
	w.record = nic.Record{Rates: w.record.Rates}
	list := s.policing(w)
	for i := range list {
		list[i].Name += " again"
	}
	return list
}

// uuidOf returns the UUID of the guest whose VMM is process pid; empty for none.
func uuidOf(pid int) string {
	guest, err := qemu.ByPID(pid)
	if err != nil {
		return ""
	}
	return guest.UUID
}

func (p *ovsPlace) master() *rtnl.Link { return nil }

func (p *ovsPlace) found(ctx context.Context, s *hostTap, dev *inventory.Device) error {
	s.m.ReadOVS(ctx, dev)
	if dev.OVS.Err == nil && dev.OVS.Port == nil {
		return fmt.Errorf("somebody removed port %s of %s meanwhile", s.name, p.br.Name)
	}
	return dev.OVS.Err
}

// putOnOVS makes a tap a port of its bridge again.
func (m *Maker) putOnOVS(ctx context.Context, dev *inventory.Device) error {
	return m.withOVS(ctx, dev, func(c *ovs.Conn, cfg ovs.Config) error {
		b, err := c.Bridge(ctx, dev.Want.Source)
		if err == nil {
			err = c.Add(ctx, b, cfg)
		}
		if err == nil && !dev.Want.Rates.IsZero() { // see ratesAgain
			err = ratelimit.Set(m.NL, dev.Link, dev.Want.Rates)
		}
		return err
	})
}

// setOVS gives the port of a tap its settings again.
func (m *Maker) setOVS(ctx context.Context, dev *inventory.Device) error {
	return m.withOVS(ctx, dev, func(c *ovs.Conn, cfg ovs.Config) error { return c.Set(ctx, cfg) })
}

// LeaveOVS removes the port of a NIC whose tap is there, or was just now. It is success if there is
// none.
func (m *Maker) LeaveOVS(ctx context.Context, dev *inventory.Device) error {
	return m.withOVS(ctx, dev, func(c *ovs.Conn, cfg ovs.Config) error {
		return c.Withdraw(ctx, cfg.Name, cfg.Owner)
	})
}

// TidyPorts removes the rows of NICs whose taps have gone, as far as their bridges are ones of Open
// vSwitch. It reads each database once.
func (m *Maker) TidyPorts(ctx context.Context, specs []nic.Spec) (done []nic.Action, err error) {
	type key struct{ vm, nic string }
	gone := map[string]map[key]bool{} // by the database's socket
	for _, spec := range specs {
		if spec.Bridge == "" {
			continue
		}
		if l, errLink := m.NL.Link(spec.Bridge); errLink != nil || !l.MayBeOVS() {
			err = errors.Join(err, rtnl.IgnoreNotExist(errLink))
			continue
		}
		if gone[spec.OVSDB] == nil {
			gone[spec.OVSDB] = map[key]bool{}
		}
		gone[spec.OVSDB][key{spec.VM, spec.NIC}] = true
	}
	for _, path := range slices.Sorted(maps.Keys(gone)) {
		of := func(vm, nicID string) bool { return gone[path][key{vm, nicID}] }
		some, errTidy := m.TidyOVS(ctx, false, of, path)
		done, err = append(done, some...), errors.Join(err, errTidy)
	}
	return done, err
}

func (m *Maker) withOVS(ctx context.Context, dev *inventory.Device, f func(*ovs.Conn, ovs.Config) error) error {
	owner, err := m.OVSOwner(dev.Want, dev.Index)
	if err != nil {
		return err
	}
	cfg := configOf(dev.Want, dev.Name, owner)
	cfg.VMID = uuidOf(dev.VMMPID())
	return m.UseOVS(ctx, dev.Want.OVSDB, func(c *ovs.Conn) error { return f(c, cfg) })
}

// RunsOVS returns why one of the databases with these sockets cannot be used, or nil.
func (m *Maker) RunsOVS(ctx context.Context, paths ...string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, m.UseOVS(ctx, path, func(*ovs.Conn) error { return nil }))
	}
	return errors.Join(errs...)
}
