package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/testvm/traffic"
)

// A lan is one switch with its ports, each connected to its own station: A and B, which exchange
// traffic, and others that are idle.
type lan struct {
	peer  *peer
	ports int

	in    *netns.NS // where the switch is
	nl    *netlink.Handle
	a, b  *station
	procs []*process // the switch's
	pumps []*process // those in the place of a guest's VMM
	undo  []func()
}

// A station is a netns with one interface.
type station struct {
	ns *netns.NS
	nl *netlink.Handle
	ip string
}

// newLAN starts a switch of that kind, and checks that its stations reach each other.
func newLAN(p *peer, ports int, tools *tools) (*lan, error) {
	l := &lan{peer: p, ports: ports}
	err := l.open()
	if err == nil {
		err = p.start(l, tools)
	}
	if err == nil {
		err = l.reachable()
	}
	if err != nil {
		time.Sleep(200 * time.Millisecond) // so that the program that failed has written its message
		for _, p := range l.all() {
			err = errors.Join(err, p.alive())
		}
		l.close()
		return nil, fmt.Errorf("%s with %d ports: %w", p.name, ports, err)
	}
	return l, nil
}

func (l *lan) open() (err error) {
	if l.in, l.nl, err = l.namespace(); err != nil {
		return err
	}
	for i, s := range []**station{&l.a, &l.b} {
		*s = &station{ip: fmt.Sprintf("10.9.0.%d", i+1)}
		if (*s).ns, (*s).nl, err = l.namespace(); err != nil {
			return err
		}
	}
	return nil
}

// namespace creates a netns with lo up and without IPv6, which sends packets by itself.
func (l *lan) namespace() (*netns.NS, *netlink.Handle, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, nil, err
	}
	l.undo = append(l.undo, func() { _ = ns.Close() })
	nl, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, err
	}
	l.undo = append(l.undo, nl.Close)
	for _, which := range []string{"default", "all"} {
		err := ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0)
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
	}
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return nil, nil, err
	}
	return ns, nl, nl.LinkSetUp(lo)
}

func (l *lan) all() []*process { return append(append([]*process{}, l.procs...), l.pumps...) }

func (l *lan) close() {
	for _, p := range l.all() {
		p.stop()
	}
	for i := len(l.undo) - 1; i >= 0; i-- {
		l.undo[i]()
	}
}

// spawn starts a program that belongs to the switch.
func (l *lan) spawn(prog program) error {
	p, err := prog.start(l.in)
	if err == nil {
		l.procs = append(l.procs, p)
	}
	return err
}

// pump starts a program that takes the place of a VMM.
func (l *lan) pump(prog program) error {
	p, err := prog.start(l.in)
	if err == nil {
		l.pumps = append(l.pumps, p)
	}
	return err
}

func portName(i int) string { return fmt.Sprintf("p%d", i) }

// names returns the names of the ports' interfaces, by number.
func (l *lan) names() (names []string) {
	for i := range l.ports {
		names = append(names, portName(i))
	}
	return names
}

// move waits for an interface that a program creates in the switch's netns, and moves it to a
// station.
func (l *lan) move(name string, s *station) error {
	link, err := l.await(name)
	if err != nil {
		return err
	}
	if err := l.nl.LinkSetNsFd(link, int(s.ns.Handle())); err != nil {
		return fmt.Errorf("move %s to its station: %w", name, err)
	}
	return s.up(name)
}

// up adds the address of a station's interface and brings it up.
func (s *station) up(name string) error {
	link, err := s.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s at its station: %w", name, err)
	}
	addr, err := netlink.ParseAddr(s.ip + "/24")
	if err != nil {
		return err
	}
	if err := s.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if err := s.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// moveTaps moves the first two ports, interfaces that the switch has created, to A and B. The
// others stay.
func (l *lan) moveTaps() error {
	for i, name := range l.names() {
		var err error
		switch i {
		case 0:
			err = l.move(name, l.a)
		case 1:
			err = l.move(name, l.b)
		default:
			var link netlink.Link
			if link, err = l.await(name); err == nil {
				err = l.nl.LinkSetUp(link)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// veths creates a pair for each port; the other end is at the station.
func (l *lan) veths() error {
	for i, name := range l.names() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "far" + name, PeerNamespace: netlink.NsFd(int(l.in.Handle()))}
		var s *station
		if i < 2 {
			s = []*station{l.a, l.b}[i]
			pair.PeerNamespace = netlink.NsFd(int(s.ns.Handle()))
		}
		if err := l.nl.LinkAdd(pair); err != nil {
			return fmt.Errorf("make veth pair %s: %w", name, err)
		}
		if err := l.nl.LinkSetUp(pair); err != nil {
			return err
		}
		var err error
		if s != nil {
			err = s.up(pair.PeerName)
		} else {
			var far netlink.Link
			if far, err = l.nl.LinkByName(pair.PeerName); err == nil {
				err = l.nl.LinkSetUp(far)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// await waits for an interface.
func (l *lan) await(name string) (netlink.Link, error) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		link, err := l.nl.LinkByName(name)
		if err == nil {
			return link, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("wait for %s: %w", name, err)
		}
		for _, p := range l.all() {
			if err := p.alive(); err != nil {
				return nil, err
			}
		}
	}
}

// reachable waits until B answers A through the switch.
func (l *lan) reachable() error {
	return l.a.ns.Do(func() error {
		_, err := traffic.SendPing(context.Background(),
			traffic.Ping{Addr: l.b.ip, Count: 100, Timeout: 200 * time.Millisecond, UntilFirst: true})
		return err
	})
}
