package why

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/tapmgr"
)

// A Request is a frame to follow.
type Request struct {
	Manager *tapmgr.Manager
	NS      *netns.NS  // that of the Manager
	Dir     config.Dir // of networks' files

	VM, NIC string // NIC is empty for the guest's only one
	To      string // "outside", a guest's name with or without its NIC's, or an address
	Frame   Frame
}

// ErrTarget is returned for a target that is neither an address nor a guest.
var ErrTarget = errors.New("no such target")

// readWait bounds each part of the reading.
const readWait = 3 * time.Second

// beyond is an address to which only the default route leads (TEST-NET-2 of RFC 5737). Nothing is
// sent there.
var beyond = netip.AddrFrom4([4]byte{198, 51, 100, 1})

// reader fills in Facts.
type reader struct {
	Request
	*Facts
	nl *rtnl.Conn
}

// Read reads what is known about a frame's way. It fails only for a NIC or a target that is not
// there; what else cannot be read is missing.
func Read(ctx context.Context, q Request) (*Facts, error) {
	nl, err := rtnl.Open(q.NS)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	r := &reader{q, &Facts{
		Frame: q.Frame, Settings: map[string]string{}, Missing: map[Part]string{},
	}, nl}
	if r.Links, err = nl.Links("", 0); err != nil {
		return nil, err
	}
	if err := r.readAddrs(); err != nil {
		return nil, err
	}
	n, err := r.nic(ctx, q.VM, q.NIC)
	if err != nil {
		return nil, err
	}
	r.Facts.NIC = n
	if r.Others, err = q.Manager.Survey(ctx, "", tapmgr.Look{Addresses: true}); err != nil {
		return nil, err
	}
	if err := r.target(ctx); err != nil {
		return nil, err
	}
	for _, read := range []func(context.Context){
		r.readBridge, r.readSwitch, r.readRoutes, r.readSettings, r.readFirewall, r.readNetwork, r.readRadios,
		r.readOVS,
	} {
		within, cancel := context.WithTimeoutCause(ctx, readWait, fmt.Errorf("it has taken %v", readWait))
		read(within)
		cancel()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	for _, n := range []*NIC{r.Facts.NIC, r.Peer} {
		if n == nil || n.Link == nil || n.Netns != "" {
			continue
		}
		if now, err := nl.LinkByIndex(n.Link.Index); err == nil {
			n.Choked = choked(n.Link.Stats, now.Stats)
		}
	}
	return r.Facts, nil
}

// choked returns how many frames a tap has dropped since before, because its queue was full, if
// nobody has read any meanwhile.
func choked(before, now rtnl.Stats) uint64 {
	if now.TxPackets != before.TxPackets {
		return 0
	}
	return now.TxDropped - before.TxDropped
}

func (r *reader) readAddrs() error {
	all, err := r.nl.AddrsByLink()
	for link, addrs := range all {
		for _, a := range addrs {
			r.Addrs = append(r.Addrs, Addr{link, a})
		}
	}
	return err
}

// missing notes why a part could not be read.
func (r *reader) missing(p Part, err error) {
	if err != nil {
		r.Missing[p] = strings.Join(strings.Fields(err.Error()), " ")
	}
}

// nic reads a guest's NIC.
func (r *reader) nic(ctx context.Context, vm, id string) (*NIC, error) {
	d, err := r.Manager.ShowNIC(ctx, vm, id)
	if err != nil {
		return nil, fmt.Errorf("why %s: %w", strings.TrimSuffix(vm+"/"+id, "/"), err)
	}
	n := &NIC{Detail: d}
	n.Link = r.hostLink(&n.Detail)
	if n.PID != 0 {
		n.Process = processOf(n.PID)
	}
	return n, nil
}

// hostLink reads a NIC's host interface, also in a netns of its own.
func (r *reader) hostLink(d *tapmgr.Detail) *rtnl.Link {
	if d.Netns == "" {
		return r.link(d.Interface)
	}
	ns, err := netns.Open(d.Netns)
	if err != nil {
		return nil
	}
	defer ns.Close()
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil
	}
	defer nl.Close()
	l, err := nl.Link(d.Interface)
	if err != nil {
		return nil
	}
	return l
}

// target finds out what the frame is for.
func (r *reader) target(ctx context.Context) error {
	r.Facts.To = Target{Kind: Address, Name: r.Request.To}
	to := &r.Facts.To
	if to.Name == string(Outside) {
		to.Kind, to.Addr = Outside, beyond
		return nil
	}
	if a, err := netip.ParseAddr(to.Name); err == nil {
		to.Addr = a.Unmap()
		if r.own(to.Addr) != nil {
			to.Kind = Host
			return nil
		}
		for _, o := range r.Others {
			for _, known := range o.Addresses {
				if known.IP == to.Addr && o.VM != "" && (o.VM != r.VM || o.ID != r.Facts.NIC.ID) {
					return r.peer(ctx, o.VM, o.ID)
				}
			}
		}
		return nil
	}
	vm, id, _ := strings.Cut(to.Name, "/")
	if !slices.ContainsFunc(r.Others, func(o tapmgr.Sighting) bool { return o.VM == vm }) {
		return fmt.Errorf("%w: --to %s: want %q, an address, or a guest with a NIC (vmnet list shows them)",
			ErrTarget, to.Name, Outside)
	}
	return r.peer(ctx, vm, id)
}

// peer reads the NIC of the guest that the frame is for.
func (r *reader) peer(ctx context.Context, vm, id string) error {
	n, err := r.nic(ctx, vm, id)
	if err != nil {
		return err
	}
	r.Facts.To.Kind, r.Peer = Guest, n
	if !r.Facts.To.Addr.IsValid() {
		r.Facts.To.Addr = n.address(netip.IPv4Unspecified())
	}
	return nil
}
