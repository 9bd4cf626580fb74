package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/tapmgr"
)

// An openPort is a wantedPort with its files, which the switch gets copies of.
type openPort struct {
	control.Port
	files []*os.File
	close func() error
	undo  func() error // after close, for a port that the switch did not take; may be nil
	how   string       // how it was opened, in words
}

// openPorts opens all ports or none, and packet ports with fast paths if fast. It needs the
// privileges that their devices need.
func openPorts(ctx context.Context, ns *netns.NS, wanted []wantedPort, fast bool) (opened []openPort, err error) {
	c, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i := range wanted {
		w := &wanted[i]
		var p openPort
		switch w.Kind {
		case control.Tap:
			p, err = w.openTap(ns, c)
		case control.VhostUser, control.Stream:
			p, err = w.openSocket()
		case control.Tun:
			p, err = w.openTun(ns, c)
		case control.VXLAN:
			p, err = w.openVXLAN(ns)
		default:
			p, err = w.openPacket(ctx, ns, c, fast)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("port %s: %w", w.Name, err), discardPorts(opened))
		}
		opened = append(opened, p)
	}
	return opened, nil
}

func closePorts(opened []openPort) error {
	var errs []error
	for _, p := range opened {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// discardPorts is closePorts for ports some of which the switch did not take.
func discardPorts(opened []openPort) error {
	err := closePorts(opened)
	for _, p := range opened {
		if p.undo != nil {
			_ = p.undo() // fails if the switch has taken this one
		}
	}
	return err
}

func (w *wantedPort) openTap(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	link, err := c.Link(w.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return w.makeTap(ns, c)
	}
	if err != nil {
		return openPort{}, err
	}
	switch t := link.Tun; {
	case t == nil || !t.Tap:
		return openPort{}, fmt.Errorf("%s is not a tap (use --packet for other devices)", w.Device)
	case !t.Persist || t.Attached:
		return openPort{},
			fmt.Errorf("another process has the tap %s open (use --packet to take its frames on the kernel's side)",
				w.Device)
	case w.queues > 1 && !t.MultiQueue:
		return openPort{},
			fmt.Errorf(
				"the tap %s was made with one queue (ask for one, or recreate it: ip tuntap add %s mode tap multi_queue)",
				w.Device, w.Device)
	}
	w.Segments = endpoint.SegmentsOf(c, link, false)
	tap, err := tun.Open(ns, w.Device, link.Tun.MultiQueue, w.queues)
	if err != nil {
		return openPort{}, err
	}
	how := "opened"
	if !link.Up {
		how = "opened, the link is down"
	}
	return w.followed(ns, tap, how)
}

// makeTap makes a tap that the kernel removes with its last queue, and brings it up.
func (w *wantedPort) makeTap(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	tap, err := tun.Create(ns, w.Device, w.queues > 1)
	if err != nil {
		return openPort{}, err
	}
	for range w.queues - 1 {
		if err == nil {
			err = tap.AddQueue()
		}
	}
	var link *rtnl.Link
	if err == nil {
		link, err = c.Link(w.Device)
	}
	if err == nil {
		attrs := []rtnl.Attr{rtnl.Up(true)}
		if w.Config.MTU != 0 {
			attrs = append(attrs, rtnl.MTU(w.Config.MTU))
		}
		err = c.Set(link.Index, attrs...)
	}
	if err != nil {
		return openPort{}, errors.Join(err, tap.Close())
	}
	return w.followed(ns, tap, "made")
}

// followed returns a port on a tap, with a netlink socket by which the switch follows the device.
func (w *wantedPort) followed(ns *netns.NS, tap *tun.Tap, how string) (openPort, error) {
	link, err := rtnl.FollowFile(ns)
	if err != nil {
		return openPort{}, errors.Join(err, tap.Close())
	}
	p := w.Port
	p.Link = true
	closeBoth := func() error { return errors.Join(tap.Close(), link.Close()) }
	return openPort{Port: p, files: append(slices.Clone(tap.Queues()), link), close: closeBoth, how: how}, nil
}

// openTun opens a persistent tun, or makes one with the port's addresses, which the kernel removes
// with its queue.
func (w *wantedPort) openTun(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	link, err := c.Link(w.Device)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.makeTun(ns, c)
	case err != nil:
		return openPort{}, err
	case link.Tun == nil || link.Tun.Tap || link.Tun.MultiQueue:
		return openPort{},
			fmt.Errorf("%s is not a tun with one queue (choose another name; ip tuntap add NAME mode tun makes one)",
				w.Device)
	case !link.Tun.Persist || link.Tun.Attached:
		return openPort{}, fmt.Errorf("another process has the tun %s open (use another one)", w.Device)
	}
	t, err := tun.OpenTun(ns, w.Device)
	if err != nil {
		return openPort{}, err
	}
	how := "opened"
	if !link.Up {
		how = "opened, the link is down"
	}
	return w.followed(ns, t, how)
}

func (w *wantedPort) makeTun(ns *netns.NS, c *rtnl.Conn) (openPort, error) {
	t, err := tun.CreateTun(ns, w.Device)
	if err != nil {
		return openPort{}, err
	}
	link, err := c.Link(w.Device)
	if err == nil {
		err = w.setTun(c, link.Index)
	}
	if err != nil {
		return openPort{}, errors.Join(err, t.Close())
	}
	return w.followed(ns, t, "made")
}

// setTun gives a new tun what the port says: the MTU, and the addresses for which the switch
// answers. The kernel assigns none by itself.
func (w *wantedPort) setTun(c *rtnl.Conn, index int) error {
	addresses, attrs := slices.Clone(w.Tun.Addresses), []rtnl.Attr{rtnl.Up(true)}
	if w.Config.MTU != 0 {
		attrs = append(attrs, rtnl.MTU(w.Config.MTU))
	}
	if slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		if err := c.Set(index, rtnl.NoIPv6Autoconf()); err != nil {
			return err
		}
		addresses = append(addresses, netip.PrefixFrom(portsec.LinkLocal(w.Config.MACs[0]), 64))
	}
	for _, p := range addresses {
		if err := c.AddAddr(index, p); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return c.Set(index, attrs...)
}

func (w *wantedPort) openPacket(ctx context.Context, ns *netns.NS, c *rtnl.Conn, fast bool) (openPort, error) {
	link, err := c.Link(w.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return openPort{},
			fmt.Errorf("device %s: %w (ip link shows the devices here; --netns names another network namespace)",
				w.Device, err)
	}
	if err != nil {
		return openPort{}, err
	}
	notes, err := endpoint.CheckInUse(ns, c, link)
	if err == nil {
		err = noGuestsOn(ctx, ns, link.Name)
	}
	if err != nil {
		return openPort{}, err
	}
	w.Segments = endpoint.SegmentsOf(c, link, true)
	files, slow, err := endpoint.FastPacketFiles(ns, link.Name, fast)
	if err != nil {
		return openPort{}, err
	}
	w.SetSlow(slow)
	how := "opened"
	if !link.Up {
		how += ", the link is down"
	}
	how = strings.Join(append([]string{how}, notes...), ", ")
	return openPort{Port: w.Port, files: files, close: closer(files), how: how}, nil
}

// openSocket makes the socket to which others connect, or opens the directory in which they listen.
func (w *wantedPort) openSocket() (openPort, error) {
	if w.connect {
		dir, err := endpoint.StreamDirectory(w.Device)
		if err != nil {
			return openPort{}, err
		}
		return openPort{Port: w.Port, files: []*os.File{dir}, close: dir.Close, how: "connects to it"}, nil
	}
	f, err := endpoint.ListenStream(w.Device)
	if err != nil {
		return openPort{}, err
	}
	return openPort{
		Port: w.Port, files: []*os.File{f}, close: f.Close, how: "listens",
		undo: func() error { return endpoint.RemoveSocket(w.Device) },
	}, nil
}

// openVXLAN opens the sockets to the other hosts.
func (w *wantedPort) openVXLAN(ns *netns.NS) (openPort, error) {
	files, err := endpoint.VXLANFiles(ns, *w.VXLAN)
	if err != nil {
		return openPort{}, err
	}
	return openPort{Port: w.Port, files: files, close: closer(files), how: "opened"}, nil
}

// closer returns what closes sockets, which have no error to report.
func closer(files []*os.File) func() error {
	return func() error { fdpass.CloseAll(files); return nil }
}

// noGuestsOn returns an error if guests have macvtaps or ipvtaps on a device: these may be in
// network namespaces that only their QEMUs have open.
func noGuestsOn(ctx context.Context, ns *netns.NS, device string) error {
	return tapmgr.In(ns.String(), func(m *tapmgr.Manager) error {
		info, err := m.ShowParent(ctx, device)
		if err != nil || len(info.NICs) == 0 {
			return err
		}
		var names []string
		for _, n := range info.NICs {
			names = append(names, fmt.Sprintf("%s of %s", n.ID, n.VM))
		}
		return fmt.Errorf("NICs of guests on %s would be cut off: %s (vmnet detach them, or use another device)",
			device, namesText(names))
	})
}
