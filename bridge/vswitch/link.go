package vswitch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// LinkState is the state of a device, as its kernel has last reported it.
type LinkState struct {
	Index   int
	Name    string
	MTU     int // bytes
	MAC     net.HardwareAddr
	Up      bool
	Carrier bool
	// Lost says that the device has moved to where the kernel does not report on it, such as a
	// network namespace that this one has no id for. The rest is as it was last reported.
	Lost bool
}

// LinkFile opens the netlink socket by which a wire follows its device. nameOrPath is that of the
// network namespace that the device is in (see OpenPacket). With the file, Wire.Follow needs no
// privilege, even in another process. The caller closes the file.
func LinkFile(nameOrPath string) (*os.File, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return rtnl.FollowFile(ns)
}

// Follow makes the wire follow its device. link is a file from LinkFile for the device's netns. The
// port's MTU is then the device's, even if that changes or the device moves to another netns.
// Follow copies the file. Call it before AddPort.
func (w *Wire) Follow(link *os.File) error { return w.FollowOn(link, Rest{}) }

// FollowOn is Follow for a port that another switch has handed over with that rest.
func (w *Wire) FollowOn(link *os.File, r Rest) error {
	if w.device == "" || w.link != nil {
		return errors.New("follow the device: the wire has none, or already follows it")
	}
	own, err := duplicate(link, endpoint.CheckLink)
	if err != nil {
		return fmt.Errorf("follow %s: %w", w.device, err)
	}
	if r.Link == nil {
		w.link, err = rtnl.Follow(own.os, w.device)
	} else {
		w.link, err = followOn(own.os, r.Link)
	}
	if err != nil {
		return err
	}
	w.mtu = w.link.State().MTU
	return nil
}

func followOn(f *os.File, text []byte) (*rtnl.Follower, error) {
	var at rtnl.Followed
	if err := json.Unmarshal(text, &at); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return rtnl.FollowOn(f, at)
}

// Link returns the state of its device. ok is false if the wire does not follow a device, or
// no longer can: it is then unknown whether the device is up.
func (p *Port) Link() (s LinkState, ok bool) {
	if at := p.link.Load(); at != nil {
		s = LinkState(*at)
	}
	return s, s.Index != 0 && !s.Lost
}

// follow handles changes of its device until the wire is closed.
func (p *Port) follow() {
	for {
		s, err := p.wire.link.Next()
		if err != nil {
			return
		}
		at := p.wire.link.Followed()
		p.followed.Store(&at)
		was := p.link.Swap(&s)
		p.linkChanged(*was, s)
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}

// LinkChanged returns a channel that receives once the state of the port's device, or the session
// of its frontend, has changed, which may be the case several times then.
func (p *Port) LinkChanged() <-chan struct{} { return p.changed }

// Followed returns what a Rest needs of the device that the port follows, as JSON, and nil if it
// needs nothing.
func (p *Port) Followed() ([]byte, error) {
	at := p.followed.Load()
	if at == nil || p.wire.kind == "packet" { // a packet port finds its device by the socket
		return nil, nil
	}
	return json.Marshal(at)
}

// linkChanged adapts the port to a change of its device.
func (p *Port) linkChanged(was, is rtnl.LinkState) {
	if is.MTU != was.MTU {
		p.limit()
	}
	p.setDown(isDown(is) || p.Err() != nil)
}

// isDown reports whether a link passes no frames. Like the kernel's bridge, it counts a link
// without carrier as down (br_port_carrier_check in net/bridge/br_if.c). A link that is lost may be
// up.
func isDown(s rtnl.LinkState) bool { return !s.Lost && !(s.Up && s.Carrier) }

// setDown marks the port's other end as down or up. If it goes down, the FDB forgets what was
// learned behind the port, so that frames for it are flooded at once, as the kernel's bridge does
// (br_stp_disable_port in net/bridge/br_stp_if.c). A frame in flight may be learned afterwards;
// Switch.tick removes that entry.
func (p *Port) setDown(down bool) {
	if p.down.Swap(down) != down && down {
		p.forget()
		p.sw.fast.revoke(p)
	}
}

// isDown reports whether the port's other end is down, or its settings have it down.
func (p *Port) isDown() bool { return p.down.Load() || p.set.Load().cfg.Down }

// forget removes from the FDB what was learned behind the port.
func (p *Port) forget() {
	if p.sw.fdb.learned[p.index].Load() > 0 {
		p.sw.fdb.FlushPort(p.index, false)
	}
}

// Key identifies the wire's device (vport.DeviceKey). It is empty if the wire does not follow a
// device.
func (w *Wire) Key() string {
	if w.link == nil {
		return ""
	}
	s := w.link.State()
	return vport.DeviceKey(s.Index, s.MAC)
}

// Key identifies the port's device by its current state, as Wire.Key does.
func (p *Port) Key() string {
	if s, ok := p.Link(); ok {
		return vport.DeviceKey(s.Index, s.MAC)
	}
	return ""
}
