package vswitch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// LinkState is how a port's device is, as its kernel has last reported.
type LinkState = rtnl.LinkState

// LinkFile opens the netlink socket by which a wire follows its device, which is in ns: Wire.Follow
// needs no privilege then, even in another process. The caller closes it.
func LinkFile(ns *netns.NS) (*os.File, error) { return rtnl.FollowFile(ns) }

// Follow makes the wire follow its device, by a file of LinkFile for the netns that the device is in:
// the port's MTU is then the device's, also when that changes or the device moves to another netns.
// It copies the file, and is called before AddPort.
func (w *Wire) Follow(link *os.File) error {
	if w.device == "" || w.link != nil {
		return errors.New("follow the device: the wire has none, or follows it already")
	}
	own, err := duplicate(link, checkLink)
	if err != nil {
		return fmt.Errorf("follow %s: %w", w.device, err)
	}
	if w.link, err = rtnl.Follow(own.os, w.device); err != nil {
		return err
	}
	w.mtu = w.link.State().MTU
	return nil
}

func checkLink(fd int) error {
	if err := checkKind(fd, unix.AF_NETLINK, unix.SOCK_RAW, "a netlink socket"); err != nil {
		return err
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil && protocol != unix.NETLINK_ROUTE {
		err = fmt.Errorf("netlink protocol %d: want that of links", protocol)
	}
	return err
}

// Link is how the port's device is. It is not ok where the wire follows none, or cannot any more: then
// nobody knows whether it is up.
func (p *Port) Link() (s LinkState, ok bool) {
	if at := p.link.Load(); at != nil {
		s = *at
	}
	return s, s.Index != 0 && !s.Lost
}

// follow has the port follow its device until the wire is closed.
func (p *Port) follow() {
	for {
		s, err := p.wire.link.Next()
		if err != nil {
			return
		}
		was := p.link.Swap(&s)
		p.linkChanged(*was, s)
	}
}

// linkChanged does what a change of the device asks for.
func (p *Port) linkChanged(was, is LinkState) {
	if is.MTU != was.MTU && p.cfg.MTU == 0 {
		limits := *p.limits.Load()
		limits.MTU = is.MTU
		p.limits.Store(&limits)
	}
	p.setDown(isDown(is) || p.Err() != nil)
}

// isDown reports whether a link passes no frames: as the kernel's bridge has it, without a carrier
// either (br_port_carrier_check in net/bridge/br_if.c). A link that is lost may be up.
func isDown(s LinkState) bool { return !s.Lost && !(s.Up && s.Carrier) }

// setDown notes that nothing passes the port's other end, or that it does again. What was learned
// behind the port is flooded at once then, as by the kernel's bridge (br_stp_disable_port in
// net/bridge/br_stp_if.c). A frame that is under way may be learned from afterwards: the switch's
// clock looks again.
func (p *Port) setDown(down bool) {
	if p.down.Swap(down) != down && down {
		p.forget()
	}
}

// forget has the FDB forget what was learned behind the port.
func (p *Port) forget() {
	if p.sw.fdb.learned[p.index].Load() > 0 {
		p.sw.fdb.FlushPort(p.index, false)
	}
}
