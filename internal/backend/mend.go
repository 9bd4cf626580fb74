package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
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

// Tidy removes what NICs have left on the host that have gone: routed and shaped ones, and ports of
// Open vSwitch.
func (r *Mending) Tidy(ctx context.Context) error {
	rows, rowsErr := r.m.TidyOVS(ctx, r.Dry, "", "", r.m.Databases()...)
	r.Actions = append(r.Actions, rows...)
	done, err := r.m.Routed().Tidy(ctx, r.Dry)
	for _, d := range done {
		r.Actions = append(r.Actions, nic.Action{Interface: d.Link, Action: d.Text(), Changed: true})
	}
	shapers, shaperErr := ratelimit.Tidy(r.m.NL, r.Dry)
	for _, name := range shapers {
		text := "removed: the NIC that it shaped has gone"
		r.Actions = append(r.Actions, nic.Action{Interface: name, Action: text, Changed: true})
	}
	return errors.Join(rowsErr, err, shaperErr)
}

// KeepRouted restores what routed NICs lack of the host, and removes what others of them have left
// there. It needs no lock of a guest. Failures of a NIC are in the actions.
func (m *Maker) KeepRouted(ctx context.Context) ([]nic.Action, error) {
	links, err := m.RoutedDevices()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if dev.Want.Phase != nic.PhasePlugged { // its steps may have yet to come
			continue
		}
		v, err := m.View(&dev)
		if err != nil {
			r.Fail(dev, err)
			continue
		}
		for _, f := range v.Compare() {
			if f.Fix.Kind == inventory.FixRouting {
				r.Do(dev, f.Done, func() error { return m.mend(ctx, v, f.Fix) })
			}
		}
	}
	err = r.Tidy(ctx)
	return r.Actions, err
}

// policed are the fixes of what the kernel does with frames at a NIC's device.
var policed = []inventory.FixKind{inventory.FixSecurity, inventory.FixInbound, inventory.FixRates}

// KeepPoliced restores what somebody has removed of port security, of the filters of --allow-in and
// of rates. It needs no lock of a guest, and leaves NICs alone that a verb works on. Failures of a
// NIC are in the actions.
func (m *Maker) KeepPoliced(ctx context.Context) ([]nic.Action, error) {
	links, err := m.PolicedDevices()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		v, err := m.View(&dev)
		if err != nil {
			r.Fail(dev, err)
			continue
		}
		for _, f := range v.Compare() {
			if !slices.Contains(policed, f.Fix.Kind) {
				continue
			}
			// A verb that has begun meanwhile has written that into the alias first.
			if now, err := m.NL.LinkByIndex(dev.Index); err == nil && now.Alias == dev.Alias {
				r.Do(dev, f.Done, func() error { return m.mend(ctx, v, f.Fix) })
			}
		}
	}
	return r.Actions, nil
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
		if err != nil {
			return err
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

// PutBack makes the taps of NICs whose bridges were deleted ports of the bridges of these names
// that are there now, with their settings. It needs no lock of a guest. A tap that was made for
// that very bridge was taken off it by somebody, and is left alone. Failures are in the actions;
// the error is about reading what there is.
func (m *Maker) PutBack(names ...string) ([]nic.Action, error) {
	links, err := m.WithoutMaster()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if !slices.Contains(names, dev.Want.Source) {
			continue
		}
		br, err := bridges.Get(m.NL, dev.Want.Source)
		if err == nil && dev.Outlived(br) {
			r.Do(dev, "put back on "+br.Name, func() error { return m.putOnBridge(&dev, br) })
		}
	}
	return r.Actions, nil
}

// ForeignWithoutMaster reports whether there is any tap that PutBackForeign might put on a bridge.
func (m *Maker) ForeignWithoutMaster() (bool, error) {
	links, err := m.NL.Links("tun", 0)
	return slices.ContainsFunc(links, func(l *rtnl.Link) bool {
		return inventory.IsForeign(l, "tun") && l.Master == 0
	}), err
}

// PutBackForeign is PutBack for the tap of that name that somebody else, such as libvirt, has made
// for a guest's NIC of that MAC. It leaves the tap up or down. done is false if there is nothing to
// do: the tap is on a bridge, or younger than the bridge, or not for that MAC. The error matches
// fs.ErrNotExist if there is no tap of that name, or no such bridge.
func (m *Maker) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string, cfg brport.Settings) (done bool,
	err error,
) {
	br, err := bridges.Get(m.NL, bridgeName)
	if err != nil {
		return false, err
	}
	l, err := m.NL.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	if !inventory.IsForeignTap(l, mac) || !inventory.Outlived(l, br) {
		return false, nil
	}
	if l.Up {
		return true, bridges.AddPort(m.NL, br, l, cfg)
	}
	return true, bridges.AddPortDown(m.NL, br, l, cfg)
}

// SetForeignPort applies settings to the bridge port of the tap that another program has made for
// process pid and its NIC of that MAC. It only adds to the port's settings, as bridges.AddSettings
// does, and changes nothing if they are so already. The error matches fs.ErrNotExist if there is no
// such tap, or if it is on no bridge.
func (m *Maker) SetForeignPort(pid int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	all, err := m.Foreign(pid)
	if err != nil {
		return false, err
	}
	found := false
	for _, f := range all {
		if f.Type != nic.TypeTap || !f.HasGuest(mac) {
			continue
		}
		found = true
		c, err := m.setForeign(f.Link, cfg)
		if changed = changed || c; err != nil {
			return changed, err
		}
	}
	if !found {
		return false, fmt.Errorf("process %d holds no tap for MAC %s that somebody else made: %w",
			pid, mac, fs.ErrNotExist)
	}
	return changed, nil
}

// SetForeignPortOf is SetForeignPort for the tap of that interface index, which no process needs to
// hold yet. The error matches fs.ErrNotExist if it is no such tap any more, or on no bridge.
func (m *Maker) SetForeignPortOf(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	l, err := m.NL.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("interface %d: %w", index, err)
	}
	if !inventory.IsForeignTap(l, mac) {
		return false, fmt.Errorf("interface %s is no tap for MAC %s that somebody else made: %w",
			l.Name, mac, fs.ErrNotExist)
	}
	return m.setForeign(l, cfg)
}

// SetForeignPortNamed is SetForeignPortOf for the tap of that name.
func (m *Maker) SetForeignPortNamed(name string, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	l, err := m.NL.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	return m.SetForeignPortOf(l.Index, mac, cfg)
}

func (m *Maker) setForeign(l *rtnl.Link, cfg brport.Settings) (changed bool, err error) {
	br, err := m.PortBridge(l)
	if err != nil {
		return false, err
	}
	return bridges.AddSettings(m.NL, br, l, cfg)
}
