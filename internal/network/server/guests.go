package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/child"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
)

const (
	retryAfter     = time.Second // of the server that could not learn its guests
	releaseTimeout = time.Second // for the end of a lease
	releasePoll    = 20 * time.Millisecond
)

// teller tells a running dnsmasq of its guests.
type teller struct {
	c    Config
	nl   *rtnl.Conn
	port int // index of the server's link
	main *child.Process
}

// follow tells the server of guests whenever they change, until ctx ends, which is success, or one
// of the programs does, as relayed also says. note gets what went wrong meanwhile.
func (t *teller) follow(ctx context.Context, guests <-chan dhcp.Guests, note func(error),
	relayed <-chan error, all []*child.Process,
) error {
	ended := make(chan error, 1)
	go func() { ended <- child.Wait(ctx, all...) }()
	var last dhcp.Guests
	var retry <-chan time.Time
	for {
		select {
		case err := <-ended:
			return err
		case err := <-relayed:
			return err
		case last = <-guests:
		case <-retry:
		}
		retry = nil
		if err := t.tell(ctx, last); err != nil && ctx.Err() == nil {
			note(fmt.Errorf("network %s: its server does not know all guests: %w", t.c.Network.Name, err))
			retry = time.After(retryAfter)
		}
	}
}

// tell has the server know guests. The alias of its port says so then: from then on it gives them
// their own addresses.
func (t *teller) tell(ctx context.Context, g dhcp.Guests) error {
	if err := t.c.writeGuests(g.List); err != nil {
		return err
	}
	if err := t.main.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return t.known(ctx, g)
}

// known is the rest of tell once dnsmasq has read the files. A packet that comes later finds it
// changed: dnsmasq handles signals before packets (main in its src/dnsmasq.c).
func (t *teller) known(ctx context.Context, g dhcp.Guests) error {
	if err := t.release(ctx, g.List); err != nil {
		return err
	}
	mark := t.c.Mark()
	mark.Guests = g.Sum
	return t.nl.Set(t.port, rtnl.Alias(mark.String()))
}

// writeGuests writes the files that dnsmasq reads, if they differ. Each appears whole.
func (c Config) writeGuests(guests []dhcp.Guest) error {
	f := c.files()
	return errors.Join(
		replaceFile(f.Reservations, dhcp.Reservations(c.Network, guests)),
		replaceFile(f.Names, dhcp.Names(c.Network, guests)),
	)
}

func replaceFile(path, text string) error {
	if now, err := os.ReadFile(path); err == nil && string(now) == text {
		return nil
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil { // for dnsmasq's user, whatever the umask
		err = os.Rename(temp, path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp))
	}
	return err
}

// release ends the leases of guests that have gone, and with which others would not get their own
// addresses.
func (t *teller) release(ctx context.Context, guests []dhcp.Guest) error {
	reserved := slices.Clone(guests)
	for _, h := range t.c.Network.Fixed() {
		reserved = append(reserved, dhcp.Guest{MAC: h.MAC, IP: []netip.Addr{h.IP}})
	}
	for end := time.Now().Add(releaseTimeout); ; {
		leases, err := dhcp.ReadLeases(t.c.State, t.c.Network.Name)
		if err != nil {
			return err
		}
		stale := dhcp.Stale(reserved, guests, leases)
		if len(stale) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s stays leased to %s, which has gone", stale[0].IP, stale[0].MAC)
		}
		for _, l := range stale {
			if err := t.c.sendRelease(ctx, l); err != nil {
				return fmt.Errorf("end the lease of %s: %w", l.IP, err)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(releasePoll):
		}
	}
}

// sendRelease sends dnsmasq the message of a guest that has gone, from the host.
func (c Config) sendRelease(ctx context.Context, l dhcp.Lease) error {
	server := c.Network.Server().Addr()
	m, err := dhcp.Release(server, l)
	if err != nil {
		return err
	}
	return c.NS.Do(func() error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp4", netip.AddrPortFrom(server, dhcp.ServerPort).String())
		if err != nil {
			return err
		}
		_, err = conn.Write(m)
		return errors.Join(err, conn.Close())
	})
}

// IsCurrent reports whether the server behind a port was started as the Config says.
func (c Config) IsCurrent(port *rtnl.Link) bool {
	mark, ok := config.ParseServerMark(port.Alias)
	mark.Guests = ""
	return ok && mark == c.Mark()
}

// RemoveFiles removes the files of a network's server in the directory state.
func RemoveFiles(state, network string) error {
	var errs []error
	paths := dhcp.FilesOf(state, network).All()
	for _, path := range append(paths, paths[1]+".new", paths[2]+".new") {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
