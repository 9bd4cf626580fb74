package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/ovsdb"
	"vmnet/internal/switches"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Mending is work on several NICs: each thing that was done, or left alone, is an action.
type Mending struct {
	m       *Maker
	Dry     bool // nothing is done
	Actions []nic.Action
}

// NewMending begins one without an action.
func NewMending(m *Maker, dry bool) Mending {
	return Mending{m: m, Dry: dry, Actions: []nic.Action{}}
}

// Note records that a NIC is left alone.
func (r *Mending) Note(dev inventory.Device, text string) { r.add(dev, nic.Action{Action: text}) }

// Fail records that a NIC could not be inspected.
func (r *Mending) Fail(dev inventory.Device, err error) {
	r.add(dev, nic.Action{Action: "not looked into", Error: err.Error()})
}

// Do runs f, unless this is a dry run, and records that.
func (r *Mending) Do(dev inventory.Device, text string, f func() error) {
	a := nic.Action{Action: text, Changed: true}
	if !r.Dry {
		if err := f(); err != nil {
			a.Error = err.Error()
		}
	}
	r.add(dev, a)
}

func (r *Mending) add(dev inventory.Device, a nic.Action) {
	a.VM, a.NIC, a.Interface = dev.Want.VM, dev.Want.NIC, dev.Name
	r.Actions = append(r.Actions, a)
}

// Mend restores what differs from the record, and notes what it leaves alone. It needs no lock of a
// guest.
func (r *Mending) Mend(ctx context.Context, dev inventory.Device) {
	v, err := r.m.View(&dev)
	switch {
	case err != nil && dev.IsUntrusted():
		r.Note(dev, fmt.Sprintf("left alone: %v", err))
	case err != nil:
		r.Fail(dev, err)
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind == inventory.NotFixed {
			r.Note(dev, "left alone: "+f.Notice())
			continue
		}
		r.Do(dev, f.Done, func() error { return r.m.mend(ctx, v, f.Fix) })
	}
}

// Tidy removes what NICs that have gone have left on the host and in the databases of Open vSwitch.
func (r *Mending) Tidy(ctx context.Context) error {
	rows, err := r.m.TidyOVS(ctx, r.Dry, nil, r.m.Databases()...)
	r.Actions = append(r.Actions, rows...)
	sockets, socketErr := endpoint.TidyFrontends(os.Getenv("XDG_RUNTIME_DIR"), r.Dry)
	for _, path := range sockets {
		text := fmt.Sprintf("removed: %s, on which no QEMU listens any more", path)
		r.Actions = append(r.Actions, nic.Action{Action: text, Changed: true})
	}
	return errors.Join(err, socketErr, r.tidyHost(ctx))
}

// tidyHost is TidyHost with its actions.
func (r *Mending) tidyHost(ctx context.Context) error {
	done, err := r.m.Routed().Tidy(ctx, r.Dry)
	for _, d := range done {
		r.Actions = append(r.Actions, nic.Action{Interface: d.Link, Action: d.Text(), Changed: true})
	}
	shapers, shaperErr := ratelimit.Tidy(r.m.NL, r.Dry)
	for _, name := range shapers {
		text := "removed: the NIC that it shaped has gone"
		r.Actions = append(r.Actions, nic.Action{Interface: name, Action: text, Changed: true})
	}
	return errors.Join(err, shaperErr)
}

// MendStep returns the step that mends a finding.
func (m *Maker) MendStep(v *inventory.View, f inventory.Finding) step.Step {
	return step.Step{
		Name: f.What, Text: f.Text,
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return m.mend(ctx, v, f.Fix) },
	}
}

// mend carries out what mends a difference of a NIC.
func (m *Maker) mend(ctx context.Context, v *inventory.View, f inventory.Fix) error {
	switch f.Kind {
	case inventory.FixLink:
		if v.Tun != nil && v.Want.LinkDown && !v.Up { // before it is up: the kernel shows no carrier of it yet
			if err := m.Set(v.Device, rtnl.Carrier(false)); err != nil {
				return err
			}
		}
		return m.Set(v.Device, f.Attrs...)
	case inventory.FixMTU: // the kernel enables IPv6 on a link again whose MTU was below 1280 bytes
		return m.On(v.Device, func(nl *rtnl.Conn) error {
			if err := nl.SetQuiet(v.Index, rtnl.MTU(v.WantMTU())); err != nil {
				return err
			}
			return nl.Quieten(v.Index)
		})
	case inventory.FixIPv6:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return nl.Quieten(v.Index) })
	case inventory.FixMode:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return macvlan.SetMode(nl, v.Link, v.Want.Mode) })
	case inventory.FixAltName:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return nl.AddAltName(v.Index, f.Name) })
	case inventory.FixBridge:
		if v.IsOVS() {
			return m.putOnOVS(ctx, v.Device)
		}
		return m.putOnBridge(v.Device, v.Home)
	case inventory.FixPort:
		if v.IsOVS() {
			return m.setOVS(ctx, v.Device)
		}
		return bridges.SetPort(m.NL, v.Home, v.Link, v.Want.PortConfig())
	case inventory.FixPortState:
		return m.NL.SetPortState(v.Index, rtnl.Forwarding)
	case inventory.FixRates:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return ratelimit.Set(nl, v.Link, v.Want.Rates) })
	case inventory.FixSecurity:
		return m.On(v.Device, func(nl *rtnl.Conn) error {
			return bpfguard.Attach(nl, v.Link, v.Want.PortSecurity())
		})
	case inventory.FixInbound:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return bpfguard.AllowIn(nl, v.Link, v.Want.Inbound()) })
	case inventory.FixLifetime:
		return m.ClearPersist(v.Device, v.Holders[0].PID)
	case inventory.FixRouting:
		n, err := m.RoutedNIC(v.Device)
		switch {
		case err != nil:
			return err
		case v.Want.Prepared:
			return m.Routed().Withdraw(n)
		}
		return m.Routed().Mend(ctx, n)
	case inventory.FixSwitch:
		return m.joinSwitch(ctx, v.Device)
	case inventory.FixSwitchPort:
		return m.setSwitchPort(ctx, v.Device)
	}
	return nil
}

// MarkPlugged sets the alias of a NIC that its VMM has.
func (m *Maker) MarkPlugged(ctx context.Context, dev inventory.Device) error {
	dev.Want.Phase, dev.Want.Since = nic.PhasePlugged, 0
	alias, err := dev.Want.Encode()
	if err != nil {
		return err
	}
	return m.SetAlias(ctx, &dev, alias)
}

// SetAlias writes a NIC's record: to its link, or to its port's label. It is success if what it
// would write to is gone.
func (m *Maker) SetAlias(ctx context.Context, dev *inventory.Device, alias string) error {
	switch {
	case dev.Deleted:
		return nil
	case !dev.IsSocket():
		return m.Set(dev, rtnl.Alias(alias))
	case dev.SwitchPort.Err != nil:
		return dev.SwitchPort.Err
	case dev.SwitchPort.Port == nil: // the switch has no such port
		return nil
	}
	err := switches.With(ctx, dev.SwitchPort.Path, func(ctx context.Context, c *control.Client) error {
		return c.SetLabel(ctx, dev.SwitchPort.Port.Name, alias)
	})
	if errors.Is(err, control.ErrNotRunning) { // it has ended meanwhile
		return nil
	}
	return rtnl.IgnoreNotExist(err)
}

// Announce has the switch of a NIC handle frames as if they had come from that port of the NIC.
func (m *Maker) Announce(ctx context.Context, r nic.Record, port string, frames [][]byte) error {
	return switches.With(ctx, r.Source, func(ctx context.Context, c *control.Client) error {
		return c.Announce(ctx, port, frames)
	})
}

// Set changes settings of a NIC's link.
func (m *Maker) Set(dev *inventory.Device, attrs ...rtnl.Attr) error {
	return m.On(dev, func(nl *rtnl.Conn) error { return nl.Set(dev.Index, attrs...) })
}

// putOnBridge makes a tap a port of its bridge again, or of the one that was made in its place. It
// takes the tap off another bridge first, so that no bridge ever has it with the settings, or the
// MTU, that it has on the other.
func (m *Maker) putOnBridge(dev *inventory.Device, br *rtnl.Link) error {
	if dev.Master != 0 && dev.Master != br.Index {
		if err := bridges.RemovePort(m.NL, dev.Link); err != nil {
			return err
		}
		free := *dev.Link
		free.Master, free.Port = 0, nil
		moved := *dev
		moved.Link = &free
		dev = &moved
	}
	if err := m.NL.SetQuiet(dev.Index, rtnl.MTU(br.MTU)); err != nil {
		return err
	}
	add := bridges.AddPort
	if dev.Want.Prepared {
		add = bridges.AddPortDown
	}
	if dev.IsPlain() || dev.Want.At == br.Index {
		return add(m.NL, br, dev.Link, dev.Want.PortConfig())
	}
	r := dev.Want
	r.At = br.Index
	text, err := r.Encode()
	if err != nil {
		return err
	}
	return add(m.NL, br, dev.Link, dev.Want.PortConfig(), rtnl.Alias(text))
}

// Databases returns the sockets of the databases of Open vSwitch in which NICs have, or had, ports:
// those given, or the usual one, and those of NICs that are there.
func (m *Maker) Databases() []string {
	paths := slices.Clone(m.OVSDBs)
	if len(paths) == 0 {
		paths = []string{ovsdb.DefaultPath}
	}
	links, err := m.NL.Links("tun", 0)
	if err != nil {
		return paths
	}
	for _, l := range links {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.OVSDB != "" && !slices.Contains(paths, r.OVSDB) {
			paths = append(paths, r.OVSDB)
		}
	}
	return paths
}

// readPorts reads all ports in the database with that socket.
func (m *Maker) readPorts(ctx context.Context, path string) (ports []ovs.Port, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, ovs.ReadAllWait, inventory.ErrSilent)
	defer cancel()
	err = m.UseOVS(ctx, path, func(c *ovs.Conn) (err error) {
		ports, err = c.Ports(ctx)
		return err
	})
	return ports, err
}

// staleOVS returns the ports in the database with that socket that vmnet has made for devices that
// have gone.
func (m *Maker) staleOVS(ctx context.Context, path string) (stale []ovs.Port, err error) {
	netns, err := m.NS.Inode()
	if err != nil {
		return nil, err
	}
	here := ovs.Here(netns)
	ports, err := m.readPorts(ctx, path)
	if err != nil {
		return nil, err
	}
	links, err := m.NL.Links("tun", 0) // after the rows, so that a device of a row is among them
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, p := range ports {
		if p.IsStale(here, names) {
			stale = append(stale, p)
		}
	}
	return stale, nil
}

// TidyOVS removes the rows that vmnet has made for devices that have gone from the databases with
// these sockets, only those of NICs for which of returns true unless of is nil. A database that
// does not run, or that the caller may not use, has none to remove.
func (m *Maker) TidyOVS(ctx context.Context, dry bool, of func(vm, nicID string) bool, paths ...string) (
	done []nic.Action, err error,
) {
	var errs []error
	for _, path := range paths {
		stale, err := m.staleOVS(ctx, path)
		var some []ovs.Port
		for _, p := range stale {
			if of == nil || of(p.Owner.VM, p.Owner.NIC) {
				some = append(some, p)
			}
		}
		if err == nil && len(some) > 0 && !dry {
			err = m.UseOVS(ctx, path, func(c *ovs.Conn) error { return c.Remove(ctx, some) })
		}
		if errors.Is(err, ovsdb.ErrNotRunning) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range some {
			done = append(done, nic.Action{
				VM: p.Owner.VM, NIC: p.Owner.NIC, Interface: p.Name, Changed: true,
				Action: fmt.Sprintf("port of %s removed from Open vSwitch: its device has gone", p.Bridge),
			})
		}
	}
	return done, errors.Join(errs...)
}
