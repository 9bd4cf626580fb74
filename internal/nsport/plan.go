package nsport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/peers"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/roster"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// job is one attach.
type job struct {
	m    *Manager
	t    *target
	spec Spec

	rec      Record     // as it should be
	place    *rtnl.Link // the bridge or parent device
	have     *attachment
	mtu      int // of the link, in bytes
	notices  []string
	implicit bool // the gateways are those of the network

	making
}

// plan finds out what is to be done. It changes nothing.
func (j *job) plan(ctx context.Context) error {
	inode, err := j.m.ns.Inode()
	if err != nil {
		return err
	}
	if j.t.inode == inode {
		return errors.New("it is the network namespace of the bridges itself: nothing has to be attached there")
	}
	v, all, err := j.m.look(ctx, j.t)
	if err != nil {
		return err
	}
	j.notices = append(j.notices, v.Notices...)
	if err := j.record(); err != nil {
		return err
	}
	if err := j.existing(all); err != nil {
		return err
	}
	if err := j.mayUse(ctx, v); err != nil {
		return err
	}
	if err := j.free(); err != nil {
		return err
	}
	j.rec.Unfinished = true
	if len(j.rec.String()) > alias.Max {
		j.rec.At = 0
	}
	if n := len(j.rec.String()); n > alias.Max {
		return fmt.Errorf(
			"the record of this attachment takes %d bytes, and an alias has %d (use fewer addresses, "+
				"a shorter --id, or another path of the namespace)",
			n,
			alias.Max,
		)
	}
	j.rec.Unfinished = false
	return nil
}

// record fills in what the alias will say, and the bridge or parent device.
func (j *job) record() (err error) {
	s := j.spec
	j.rec = Record{
		Netns: s.Netns, ID: s.id(), Type: s.kind(), Network: s.Network, Interface: s.ifname(), Mode: s.mode(),
		MAC: s.MAC, MTU: s.MTU, Addresses: s.Addresses, Gateways: s.Gateways, Port: s.Port.Normal().String(),
	}
	if s.MAC == nil && s.kind() != IPVlan {
		j.rec.MAC = stablemac.New([]byte{0x02}, "netns", j.rec.ID)
	}
	j.place, err = j.m.place(s)
	if err == nil && s.Network != "" {
		err = j.onNetwork()
	}
	if err != nil {
		return err
	}
	j.rec.Source, j.mtu = j.place.Name, cmp.Or(s.MTU, j.place.MTU)
	if j.rec.Type == Veth {
		j.rec.At = j.place.Index
	}
	if j.mtu > j.place.MTU {
		return fmt.Errorf("MTU %d: %s has %d bytes", j.mtu, j.place.Name, j.place.MTU)
	}
	return nil
}

// CheckPlace returns an error unless the bridge, network or parent device of a Spec exists.
func (m *Manager) CheckPlace(s Spec) error {
	_, err := m.place(s)
	return err
}

// place returns the bridge or parent device.
func (m *Manager) place(s Spec) (*rtnl.Link, error) {
	switch {
	case s.Network != "":
		return roster.Bridge(m.nl(), m.networks(), s.Network)
	case s.Bridge != "":
		return bridges.Get(m.nl(), s.Bridge)
	}
	name := s.Macvlan + s.IPVlan
	l, err := m.nl().Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (ip link shows the devices that are here)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("parent device %s: %w", name, err)
	}
	return l, nil
}

// onNetwork completes the addresses, and adds the routers of the network unless some were named.
func (j *job) onNetwork() error {
	n, err := j.m.networks().Read(j.spec.Network)
	if err != nil {
		j.notices = append(
			j.notices,
			fmt.Sprintf("no subnet and no router of network %s is known: %v", j.spec.Network, err),
		)
		n = &config.Network{Name: j.spec.Network}
	}
	if j.rec.Addresses, err = inSubnets(j.spec.Addresses, n); err != nil {
		return err
	}
	if len(j.spec.Gateways) > 0 || len(n.Prefixes()) == 0 {
		return nil
	}
	routers := []netip.Addr{n.Gateway()}
	if n.NAT && n.IPv6.IsValid() {
		routers = append(routers, n.Router6().Addr())
	}
	j.implicit = true
	for _, r := range routers {
		has := slices.ContainsFunc(j.rec.Addresses, func(a netip.Prefix) bool { return a.Contains(r) })
		if r.IsValid() && has {
			j.rec.Gateways = append(j.rec.Gateways, r)
		}
	}
	return nil
}

// inSubnets gives addresses the prefix length of their subnet of a network. It refuses those that
// are in none, and the network's own.
func inSubnets(addrs []netip.Prefix, n *config.Network) (all []netip.Prefix, err error) {
	subnets := n.Prefixes()
	if len(subnets) == 0 {
		return addrs, nil
	}
	for _, a := range addrs {
		i := slices.IndexFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
		if i < 0 {
			return nil, fmt.Errorf(
				"address %s is not in network %s, which has %s",
				a.Addr(),
				n.Name,
				joined(subnets),
			)
		}
		bits := subnets[i].Bits()
		if a.Bits() != a.Addr().BitLen() && a.Bits() != bits {
			return nil, fmt.Errorf("address %s: network %s has the prefix length %d", a, n.Name, bits)
		}
		own := n.Addresses()
		if n.DHCP {
			own = append(own, n.Server())
			if n.IPv6.IsValid() {
				own = append(own, n.Server6())
			}
		}
		if slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr() == a.Addr() }) {
			return nil, fmt.Errorf("address %s is one of network %s itself", a.Addr(), n.Name)
		}
		all = append(all, netip.PrefixFrom(a.Addr(), bits))
	}
	return all, nil
}

// existing finds the attachment of that ID. One that differs is an error.
func (j *job) existing(all []attachment) error {
	j.have = byID(all, j.rec.ID, j.t)
	if j.have == nil || j.have.Unfinished { // the lock is ours: an interrupted attach left it
		return nil
	}
	if !j.have.isIn(j.t) {
		return fmt.Errorf(
			"%w: id %s is that of %s in netns %s (name another with --id, or vmnet netns detach --id %[2]s)",
			nic.ErrExist,
			j.rec.ID,
			j.have.Interface,
			j.have.space.Name(),
		)
	}
	if j.implicit {
		j.rec.Gateways = j.have.Gateways
	}
	if d := j.have.Differences(j.rec); len(d) > 0 {
		return fmt.Errorf("%w: id %s, but with %s (vmnet netns detach --id %[2]s, then attach it again)",
			nic.ErrExist, j.rec.ID, strings.Join(d, "; "))
	}
	return nil
}

// byID returns the attachment of that id; nil if there is none. What the users of a namespace can
// write counts in t alone, which may be nil.
func byID(all []attachment, id string, t *target) (found *attachment) {
	for i := range all {
		a := &all[i]
		if a.ID == id && (!a.claimed || a.isIn(t)) && (found == nil || found.claimed) {
			found = a
		}
	}
	return found
}

// mayUse checks the bridge or parent device.
func (j *job) mayUse(ctx context.Context, v *peers.View) error {
	if j.rec.Type == Veth {
		if bridges.NoVLAN(j.place, j.spec.Port) {
			return fmt.Errorf(
				"bridge %s has no default VLAN (vlan_default_pvid 0), so a port without one passes no frames "+
					"(name one with --vlan, or several with --trunk)", j.place.Name)
		}
		return bridges.CheckPort(j.m.nl(), j.place, &rtnl.Link{Name: j.hostName()}, j.spec.Port)
	}
	kind := vtap.Kind(j.rec.Type)
	if err := cmp.Or(macvlan.CheckParent(kind, j.place), j.m.maker.MayBeParent(kind, j.place)); err != nil {
		return err
	}
	if j.rec.Type == Macvlan {
		wireless, err := macvlan.IsWireless(j.m.ns, j.place.Name)
		if err == nil && wireless {
			return fmt.Errorf(
				"parent device %s is a Wi-Fi card, which sends from no other MAC than its own "+
					"(use --ipvlan %[1]s)",
				j.place.Name,
			)
		}
		return nil
	}
	return j.agrees(ctx, v)
}

// agrees returns an error for an ipvlan that would change those beside it: a parent device has one
// mode, and the kernel gives that of the latest ipvlan to all (ipvlan_link_new in
// drivers/net/ipvlan/ipvlan_main.c).
func (j *job) agrees(ctx context.Context, v *peers.View) error {
	others := map[string]*rtnl.Link{}
	children, err := v.Children()
	if err != nil {
		return err
	}
	for _, c := range children {
		if c.Parent.Index == j.place.Index && c.IPVlan != nil {
			others[fmt.Sprintf("%s in netns %s", c.Name, c.Space.Name())] = c.Link
		}
	}
	// Of an ipvtap elsewhere, the kernel does not report the netns of the parent device.
	devices, err := j.m.maker.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Link != nil && d.IPVlan != nil && d.Lower == j.place.Index {
			others[d.Want.VM+"/"+d.Want.NIC] = d.Link
		}
	}
	for name, l := range others {
		if there := macvlan.ModeName(l); there != j.rec.Mode {
			return fmt.Errorf(
				"%w: the mode is the same for all ipvlans and ipvtaps on %s, and %s of %s would become %s "+
					"(use --mode %[3]s)",
				syscall.EBUSY,
				j.place.Name,
				there,
				name,
				j.rec.Mode,
			)
		}
	}
	return nil
}

// free checks that the namespace has no other interface of that name, and whether the default
// routes can be made.
func (j *job) free() error {
	l, err := j.t.nl.Link(j.rec.Interface)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case j.have == nil || j.have.end == nil || j.have.end.Index != l.Index:
		return j.taken(nil)
	}
	routes, err := j.t.nl.Routes()
	if err != nil {
		return err
	}
	for _, g := range slices.Clone(j.rec.Gateways) {
		i := slices.IndexFunc(routes, func(r rtnl.Route) bool { return isDefault(r, g) && !j.isOurs(r.Link) })
		if i < 0 {
			continue
		}
		text := fmt.Sprintf("netns %s has a default route already, so none by %s is added", j.t.name, g)
		if !j.implicit {
			return errors.New(text + " (ip route del default there, or leave --gateway out)")
		}
		if j.have == nil || j.have.Unfinished {
			j.notices = append(j.notices, text)
			j.rec.Gateways = slices.DeleteFunc(j.rec.Gateways, func(o netip.Addr) bool { return o == g })
		}
	}
	return nil
}

func (j *job) isOurs(link int) bool {
	return j.have != nil && j.have.end != nil && j.have.end.Index == link
}

// isDefault reports whether a route is a default one of the IP version of a.
func isDefault(r rtnl.Route, a netip.Addr) bool {
	return r.Dst.IsValid() && r.Dst.Bits() == 0 && r.Dst.Addr().Is4() == a.Is4()
}

// taken is the error for an interface that is in the way in the namespace.
func (j *job) taken(err error) error {
	text := fmt.Sprintf(
		"netns %s has an interface %s already (name another with --ifname)",
		j.t.name,
		j.rec.Interface,
	)
	if err == nil {
		return fmt.Errorf("%w: %s", nic.ErrExist, text)
	}
	return fmt.Errorf("%w: %s", err, text)
}

// hostName returns the name of a veth pair's end here.
func (j *job) hostName() string {
	name, _ := nic.InterfaceName(j.rec.ID, "ns")
	return name
}
