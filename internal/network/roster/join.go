package roster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

const (
	knownTimeout = 5 * time.Second      // until a server knows a guest
	knownPoll    = 2 * time.Millisecond // of the alias of its port
)

// Files are the directories of the networks' files; empty for the usual ones.
type Files struct {
	Dir   config.Dir
	State string // of the lease files
}

func (f Files) dir() config.Dir { return cmp.Or(f.Dir, config.DefaultDir) }
func (f Files) state() string   { return cmp.Or(f.State, dhcp.DefaultState) }

// Join is a NIC that is about to belong to a network.
type Join struct {
	Bridge  *rtnl.Link
	Notices []string // for a person

	nl         *rtnl.Conn
	guest      Guest
	serverLink string
	await      bool // the server gives the guest its address
}

// Plan plans a NIC of a network that was applied, and changes nothing. It is an error that says who
// has it if the guest cannot have an address that it asks for.
func Plan(nl *rtnl.Conn, f Files, network string, g Guest) (*Join, error) {
	br, err := Bridge(nl, f.dir(), network)
	if err != nil {
		return nil, err
	}
	j := &Join{Bridge: br, nl: nl, guest: g}
	n, err := f.dir().Read(network)
	if err != nil {
		if len(g.IP) > 0 {
			return nil, fmt.Errorf("network %s: which addresses it has is unknown: %w", network, err)
		}
		j.Notices = append(j.Notices, err.Error())
		return j, nil
	}
	others, err := Of(nl, br)
	if err != nil {
		return nil, err
	}
	others = slices.DeleteFunc(others, func(o Guest) bool { return o.VM == g.VM && o.NIC == g.NIC })
	if err := j.checkIP(n, f, others); err != nil {
		return nil, fmt.Errorf("network %s: %w", network, err)
	}
	j.tellName(n, others)
	return j, j.planServer(n)
}

// checkIP returns an error if the guest cannot have its addresses.
func (j *Join) checkIP(n *config.Network, f Files, others []Guest) error {
	for i, a := range j.guest.IP {
		sameVersion := func(b netip.Addr) bool { return b.Is4() == a.Is4() }
		if slices.ContainsFunc(j.guest.IP[:i], sameVersion) {
			return fmt.Errorf("%s and %s: a guest has one address of each IP version",
				j.guest.IP[slices.IndexFunc(j.guest.IP, sameVersion)], a)
		}
		if err := n.CheckIP(a); err != nil {
			return err
		}
		if who := j.owner(n, others, a); who != "" {
			return fmt.Errorf("%w: %s is %s (use another address)", nic.ErrInUse, a, who)
		}
	}
	return j.checkLeases(n, f, others)
}

// owner returns what has an address, or the guest's own other one; empty for nothing.
func (j *Join) owner(n *config.Network, others []Guest, a netip.Addr) string {
	for _, h := range n.Fixed() {
		mine := h.MAC.String() == j.guest.MAC.String()
		switch {
		case h.IP == a && !mine:
			return fmt.Sprintf("host %s's, which has MAC %s", h.Name, h.MAC)
		case mine && a.Is4() && h.IP != a:
			return fmt.Sprintf("not %s's, whose MAC is that of host %s with %s", j.guest.Title(), h.Name, h.IP)
		}
	}
	for _, g := range Named(n, others) {
		if slices.Contains(g.IP, a) {
			return fmt.Sprintf("%s's, on %s", g.Title(), g.Interface)
		}
	}
	return ""
}

// checkLeases returns an error if another guest that is there has leased the guest's address. A
// lease of one that has gone is ended by the server.
func (j *Join) checkLeases(n *config.Network, f Files, others []Guest) error {
	if len(j.guest.IP) == 0 {
		return nil
	}
	leases, err := dhcp.ReadLeases(f.state(), n.Name)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	learned, err := bridges.LearnedBy(j.nl, j.Bridge.Index, 0)
	if err != nil {
		return err
	}
	for _, l := range leases {
		mine := l.MAC == j.guest.MAC.String()
		ended := !l.Expires.IsZero() && l.Expires.Before(time.Now())
		if mine || ended || !slices.Contains(j.guest.IP, l.IP) {
			continue
		}
		for _, g := range others {
			if g.MAC.String() == l.MAC {
				return fmt.Errorf("%w: %s is leased to %s, on %s (use another address)",
					nic.ErrInUse, l.IP, g.Title(), g.Interface)
			}
		}
		for _, behind := range learned {
			for _, seen := range behind {
				if seen.MAC == l.MAC {
					return fmt.Errorf("%w: %s is leased to MAC %s, which is on the bridge (use another address)",
						nic.ErrInUse, l.IP, l.MAC)
				}
			}
		}
	}
	return nil
}

// tellName notes a name that another guest has.
func (j *Join) tellName(n *config.Network, others []Guest) {
	label := config.Label(j.guest.VM)
	named := Named(n, append(others, j.guest))
	name := named[len(named)-1].Name
	if name == label && label != "" {
		return
	}
	is := "it has no name there"
	if name != "" {
		is = "it is called " + name + " there"
	}
	why := fmt.Sprintf("no name in the DNS can be made from %q", j.guest.VM)
	if label != "" {
		why = label + " is not free"
	}
	for _, g := range named[:len(named)-1] {
		if g.Name == label && label != "" {
			why = fmt.Sprintf("%s is the name of %s", label, g.Title())
		}
	}
	if slices.ContainsFunc(n.Fixed(), func(h config.Host) bool { return h.Name == label }) {
		why = fmt.Sprintf("%s is the name of a host in its file", label)
	}
	j.Notices = append(j.Notices, fmt.Sprintf("network %s: %s: %s", n.Name, why, is))
}

// planServer decides whether the server has to know the guest first.
func (j *Join) planServer(n *config.Network) error {
	mine := slices.ContainsFunc(j.guest.IP, netip.Addr.Is4)
	_, err := j.mark(n.ServerLink())
	switch {
	case !n.DHCP && len(j.guest.IP) > 0:
		j.Notices = append(j.Notices, fmt.Sprintf("network %s has no server: set the guest's address, %s, in the guest",
			n.Name, nic.FormatIPs(j.guest.IP)))
	case !n.DHCP:
	case errors.Is(err, fs.ErrNotExist) && mine:
		return fmt.Errorf("network %s: its server, which should give the guest its address, does not run "+
			"(vmnet network apply %[1]s)", n.Name)
	case errors.Is(err, fs.ErrNotExist):
		j.Notices = append(j.Notices, fmt.Sprintf("network %s: its server does not run: guests get no address "+
			"(vmnet network apply %[1]s)", n.Name))
	case err != nil:
		return err
	default:
		j.await = mine
		j.serverLink = n.ServerLink()
	}
	return nil
}

// mark reads what the server's port says.
func (j *Join) mark(link string) (config.ServerMark, error) {
	l, err := j.nl.Link(link)
	if err != nil {
		return config.ServerMark{}, err
	}
	m, ok := config.ParseServerMark(l.Alias)
	if !ok || m.Network != j.Bridge.Name {
		return m, fmt.Errorf("%s is not the server of network %s (ip link show %[1]s)", link, j.Bridge.Name)
	}
	return m, nil
}

// Steps wait until the server gives the guest its address, once the NIC is a port of the bridge:
// before the guest can ask for it. index returns that of the port.
func (j *Join) Steps(index func() int) []step.Step {
	if j == nil || !j.await {
		return nil
	}
	return []step.Step{{
		Name: "address",
		Text: fmt.Sprintf("wait until the server of network %s gives %s to %s", j.Bridge.Name,
			nic.FormatIPs(j.guest.IP), j.guest.MAC),
		Do: func(ctx context.Context) error { return j.known(ctx, index()) },
	}}
}

// known waits until the server knows all guests that there are, with the NIC among them.
func (j *Join) known(ctx context.Context, index int) error {
	for end := time.Now().Add(knownTimeout); ; {
		guests, err := Of(j.nl, j.Bridge)
		if err != nil {
			return err
		}
		for _, g := range guests { // a concurrent attach
			for _, a := range j.guest.IP {
				if g.Index < index && slices.Contains(g.IP, a) {
					return fmt.Errorf(
						"%w: %s is %s's, on %s (use another address)",
						nic.ErrInUse,
						a,
						g.Title(),
						g.Interface,
					)
				}
			}
		}
		mark, err := j.mark(j.serverLink)
		if err != nil {
			return fmt.Errorf("the server of network %s has ended: %w", j.Bridge.Name, err)
		}
		if mark.Guests == Sum(guests) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the server of network %s does not know the guest after %v "+
				"(journalctl -u vmnet-network@%[1]s says why)", j.Bridge.Name, knownTimeout)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the server of network %s: %w", j.Bridge.Name, context.Cause(ctx))
		case <-time.After(knownPoll):
		}
	}
}
