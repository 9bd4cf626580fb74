package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/roster"
	"vmnet/internal/network/server"
)

// Serve runs the server of a network, which knows the guests that are on the network's bridge,
// until ctx ends, which is success. It calls ready once guests are answered; note gets what went
// wrong and is tried again.
func (m *Manager) Serve(ctx context.Context, n *config.Network, ready func(), note func(error)) error {
	br, _, err := m.there(n.Name)
	if err != nil {
		return err
	}
	events, err := rtnl.OpenEvents(m.NS)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{
		m: m, n: n, br: br, events: events,
		changed: make(chan struct{}, 1), guests: make(chan dhcp.Guests),
	}
	errs := make(chan error, 2)
	for _, work := range []func(context.Context) error{w.listen, w.report} {
		go func() { errs <- work(ctx); cancel() }()
	}
	err = server.Serve(ctx, m.ServerConfig(n), server.Callbacks{Guests: w.guests, Ready: ready, Note: note})
	cancel()
	return errors.Join(err, events.Close(), <-errs, <-errs)
}

// watcher reads the guests on a network's bridge whenever a port of it changes.
type watcher struct {
	m       *Manager
	n       *config.Network
	br      *rtnl.Link
	events  *rtnl.Events
	changed chan struct{} // holds one if the ports may have changed since they were read
	guests  chan dhcp.Guests
}

// listen looks at all links of the namespace for the ports, until the events are closed.
func (w *watcher) listen(context.Context) error {
	ports, err := w.ports()
	if err != nil {
		return err
	}
	for {
		e, err := w.events.Next()
		switch {
		case errors.Is(err, fs.ErrClosed):
			return nil
		case errors.Is(err, rtnl.ErrLost):
			if ports, err = w.ports(); err != nil {
				return err
			}
		case err != nil:
			return err
		case !e.Gone && e.Master == w.br.Index:
			ports[e.Index] = true
		case ports[e.Index]:
			delete(ports, e.Index)
		default:
			continue
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) ports() (map[int]bool, error) {
	links, err := w.m.nl.Links("", w.br.Index)
	ports := map[int]bool{}
	for _, l := range links {
		ports[l.Index] = true
	}
	return ports, err
}

// report sends the guests at once and after each change of them, until ctx ends.
func (w *watcher) report(ctx context.Context) error {
	last := "" // no guests have such a sum
	for {
		guests, err := roster.Of(w.m.nl, w.br)
		if err != nil {
			return err
		}
		if sum := roster.Sum(guests); sum != last {
			select {
			case w.guests <- dhcp.Guests{List: known(w.n, guests), Sum: sum}:
				last = sum
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// known returns what the server of a network knows of its guests.
func known(n *config.Network, guests []roster.Guest) (list []dhcp.Guest) {
	for _, g := range roster.Named(n, guests) {
		list = append(list, dhcp.Guest{MAC: g.MAC, IP: g.IP, Name: g.Name})
	}
	return list
}

// guestInfos describes the guests that belong to a network.
func (m *Manager) guestInfos(ctx context.Context, n *config.Network) ([]GuestInfo, error) {
	infos := []GuestInfo{}
	if m.Elsewhere != nil {
		seen, err := m.Elsewhere.Look(ctx, n)
		return append(infos, seen.Guests...), err
	}
	br, _, err := m.bridge(n.Name)
	if err != nil || br == nil {
		return infos, err
	}
	guests, err := roster.Of(m.nl, br)
	for _, g := range roster.Named(n, guests) {
		infos = append(infos, GuestInfo{g.VM, g.NIC, g.Interface, g.MAC.String(), g.IP, g.Name})
	}
	return infos, err
}

// Bind binds a forward to the NIC of the guest that it names, unless that is one of the network's
// hosts. The guest keeps the address that it has now. That there is no such guest is no error, but
// one of the network's Validate.
func (m *Manager) Bind(ctx context.Context, n *config.Network, f *config.Forward) error {
	_, isHost := n.Host(f.Guest)
	if _, err := netip.ParseAddr(f.Guest); err == nil || isHost {
		return nil
	}
	for _, h := range n.Fixed() {
		if h.Name == f.Guest { // another forward is bound to it
			f.Bound = config.Binding{MAC: h.MAC.String(), IP: h.IP}
			return nil
		}
	}
	guests, err := m.guestInfos(ctx, n)
	i := slices.IndexFunc(guests, func(g GuestInfo) bool { return g.Name == f.Guest })
	if err != nil || i < 0 {
		return err
	}
	has := guests[i].IP
	leases, err := dhcp.ReadLeases(m.State, n.Name)
	if err != nil {
		return err
	}
	for _, l := range leases {
		if l.MAC == guests[i].MAC {
			has = append(has, l.IP)
		}
	}
	for _, a := range has {
		if a.Is4() {
			f.Bound = config.Binding{MAC: guests[i].MAC, IP: a}
			return nil
		}
	}
	return fmt.Errorf("forward %s: guest %s has no IPv4 address yet (wait for its lease: vmnet network leases %s; "+
		"or attach it with --ip)", f.From(), f.Guest, n.Name)
}
