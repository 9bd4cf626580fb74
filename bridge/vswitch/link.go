package vswitch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/netns"
	"vmnet/internal/rtnl"
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
}
