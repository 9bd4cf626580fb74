package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// view reads what a NIC is compared by. An error is about what could not be read, and the rest is there.
func (m *Manager) view(o *ours) (*view, error) {
	v := &view{ours: o, vhosts: -1}
	if o.gone {
		return v, nil
	}
	var errs []error
	var err error
	if v.home, err = m.home(o); err != nil {
		errs = append(errs, err)
	}
	if o.onBridge() && v.home != nil && o.Master == v.home.Index {
		found, err := bridge.ReadPort(m.nl, v.home, o.Link)
		if err == nil {
			v.port = &found
		} else {
			errs = append(errs, fmt.Errorf("its port was not compared: %w", err))
		}
	}
	if !o.onBridge() && v.home != nil {
		if v.claimed, err = m.claimed(v.home); err != nil {
			errs = append(errs, err)
		}
	}
	if o.want.Vhost && o.vmm() != 0 {
		v.vhosts = len(vhost.FDs(o.vmm()))
	}
	if o.want.Switch && o.seat.err != nil {
		errs = append(errs, fmt.Errorf("its port was not compared: %w", o.seat.err))
	}
	if o.seatless() && o.hasLink() {
		v.notRuns = m.runs(o.want.Source)
	}
	return v, errors.Join(errs...)
}

// home reads the bridge that a tap belongs on, or the parent device of a macvtap or ipvtap; nil where there is none.
func (m *Manager) home(o *ours) (*rtnl.Link, error) {
	var l *rtnl.Link
	var err error
	switch {
	case o.want.Switch:
		return nil, nil
	case !o.onBridge():
		l, err = m.nl.LinkByIndex(o.Lower)
	case o.Master != 0 && o.master == o.want.Source:
		l, err = m.nl.LinkByIndex(o.Master)
	default:
		l, err = m.nl.Link(o.want.Source)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && o.onBridge() && l.Bridge == nil {
		return nil, nil
	}
	return l, err
}

// follow finds a bridge or parent device that was renamed under a NIC: the kernel numbers links, and people name
// them. Its present name becomes the one that the NIC belongs on. on is the link that the NIC is on now; nil for none.
func (m *Manager) follow(o *ours, on *rtnl.Link) {
	r := &o.want
	var now *rtnl.Link
	switch {
	case r.Switch || r.Source == "" || on != nil && on.Name == r.Source:
		return
	case !o.onBridge(): // the kernel never puts it on another parent device
		now = on
	case on != nil && on.Index == r.At:
		now = on
	case on != nil: // nothing tells but that neither the name nor the index is anybody's
		_, err := m.nl.Link(r.Source)
		if errors.Is(err, fs.ErrNotExist) && r.At != 0 {
			_, err = m.nl.LinkByIndex(r.At)
		}
		if errors.Is(err, fs.ErrNotExist) {
			now = on
		}
	case r.At != 0:
		if l, err := m.nl.LinkByIndex(r.At); err == nil && l.Bridge != nil {
			now = l
		}
	}
	if now != nil && (!o.onBridge() || now.Bridge != nil) {
		o.formerly, r.Source = r.Source, now.Name
	}
}

// renamed is the present name of the bridge or parent device that a Spec names as it was called when the guest got the NIC,
// where the error of a plan Is fs.ErrNotExist for that reason; else it is empty.
func (m *Manager) renamed(ctx context.Context, spec nic.Spec, why error) string {
	if !errors.Is(why, fs.ErrNotExist) {
		return ""
	}
	all, err := m.named(ctx, spec.VM, spec.NIC)
	if err != nil {
		return ""
	}
	for _, o := range all {
		if o.formerly != "" && o.formerly == spec.Source() && (spec.PID == 0 || o.isHeldBy(spec.PID)) {
			return o.want.Source
		}
	}
	return ""
}

// masterOf reads the link that another one is a port of; nil for none.
func (m *Manager) masterOf(l *rtnl.Link) *rtnl.Link {
	if l.Master == 0 {
		return nil
	}
	master, err := m.nl.LinkByIndex(l.Master)
	if err != nil {
		return &rtnl.Link{Index: l.Master, Name: fmt.Sprintf("interface %d", l.Master)}
	}
	return master
}

// advice is what a person should know of a NIC that is as it should be, and does not work as the guest expects.
func (v *view) advice() []string {
	var list []string
	if told, most := v.want.GuestMTU(), v.wantMTU(); !v.want.Switch && !v.isPlain() && most != 0 && told > most {
		list = append(list, fmt.Sprintf("the guest may send %d bytes in a frame, and %s carries %d: longer ones are lost (ip link set %s mtu %d; or detach it and attach it again)",
			told, v.home.Name, most, v.home.Name, told))
	}
	if v.home != nil && !v.onBridge() && v.home.Up && !v.home.Carrier {
		list = append(list, fmt.Sprintf("parent device %s has no carrier: nothing passes it until its cable, or what stands for that, is connected", v.home.Name))
	}
	return list
}
