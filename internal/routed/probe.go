package routed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"vmnet/internal/kernel/rtnl"
)

// ErrTaken is returned for an address that is somebody else's.
var ErrTaken = errors.New("address in use")

// ProbeTime is how long the LAN is asked for an address that a guest is to get. Machines answer in
// milliseconds, on Wi-Fi in up to 0.3 s.
const ProbeTime = time.Second

// askEvery is the pause between two questions; one may be lost.
const (
	askEvery  = 300 * time.Millisecond
	pollEvery = 20 * time.Millisecond
)

// Probe returns an error that matches ErrTaken if a machine on the LAN answers for one of the
// addresses. The kernel asks, by ARP and neighbour discovery. A link without a carrier has nobody
// to ask.
func (h *Host) Probe(ctx context.Context, uplink *rtnl.Link, ips []netip.Addr) error {
	if !uplink.Carrier {
		return nil
	}
	for _, a := range ips {
		n, err := h.NL.Neighbour(uplink.Index, a)
		if err != nil {
			return err
		}
		if n.IsPermanent() {
			return fmt.Errorf("%w: %s has a permanent neighbour entry on %s, for %s (ip neigh del %[2]s dev %[3]s)",
				ErrTaken, a, uplink.Name, n.MAC)
		}
	}
	a, mac, err := h.Answering(ctx, uplink, ips)
	if err == nil && mac != nil {
		err = fmt.Errorf("%w: %s has %s on %s already (choose another address, or end that machine)",
			ErrTaken, mac, a, uplink.Name)
	}
	return err
}

// Answering asks the LAN for addresses until a machine answers for one of them, whose MAC address
// it returns, or nil after ProbeTime.
func (h *Host) Answering(ctx context.Context, uplink *rtnl.Link, ips []netip.Addr) (
	which netip.Addr, mac net.HardwareAddr, err error,
) {
	defer func() {
		for _, a := range ips {
			err = errors.Join(err, h.NL.Forget(uplink.Index, a))
		}
	}()
	end := time.Now().Add(ProbeTime)
	for ask := time.Now(); time.Now().Before(end); {
		if !time.Now().Before(ask) {
			for _, a := range ips {
				if err := h.ask(uplink, a); err != nil {
					return a, nil, err
				}
			}
			ask = ask.Add(askEvery)
		}
		select {
		case <-ctx.Done():
			return which, nil, context.Cause(ctx)
		case <-time.After(pollEvery):
		}
		for _, a := range ips {
			n, err := h.NL.Neighbour(uplink.Index, a)
			if err != nil {
				return a, nil, err
			}
			if n.Answers() {
				return a, n.MAC, nil
			}
		}
	}
	return which, nil, nil
}

// ask has the kernel ask for an address that it knows nothing of.
func (h *Host) ask(uplink *rtnl.Link, a netip.Addr) error {
	if err := h.NL.Forget(uplink.Index, a); err != nil {
		return err
	}
	return askError(h.NL.Solicit(uplink.Index, a), uplink.Name, a)
}

// askError names the cause of ENOBUFS, which the kernel returns if it has no room for a neighbor.
func askError(err error, uplink string, a netip.Addr) error {
	version := 4
	if a.Is6() {
		version = 6
	}
	switch {
	case errors.Is(err, syscall.ENOBUFS):
		return fmt.Errorf("ask for %s on %s: the kernel's table of neighbors is full "+
			"(raise sysctl net.ipv%d.neigh.default.gc_thresh3)", a, uplink, version)
	case err != nil:
		return fmt.Errorf("ask for %s on %s: %w", a, uplink, err)
	}
	return nil
}
