package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/peers"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/policing"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// macvtapInterface is a macvtap or ipvtap on a parent device, in a netns of its own that ends with
// its last file.
type macvtapInterface struct {
	m             *Maker
	spec          nic.Spec
	files         *qmp.Files
	parent        *rtnl.Link
	name, altName string

	pid   int             // of the guest's VMM, known when the steps run
	dev   *macvlan.Device // with the queues that are open here; nil before its step
	inode uint64          // of its netns
}

func (s *macvtapInterface) plan(ctx context.Context, r *nic.Record) (_ Interface, err error) {
	l := s.spec.Lower
	s.parent, err = s.m.NL.Link(l.Device)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (ip link shows the devices that are here)", err)
	}
	if err != nil {
		return Interface{}, fmt.Errorf("parent device %s: %w", l.Device, err)
	}
	// Access points drop frames from other MACs than the Wi-Fi card's. An ipvtap shares its MAC.
	if l.Kind == vtap.Macvtap && l.Mode != "passthru" {
		if wireless, err := macvlan.IsWireless(s.m.NS, s.parent.Name); err == nil && wireless {
			return Interface{}, fmt.Errorf(
				"parent device %s is a Wi-Fi card, which sends from no other MAC than its own (use --ipvtap %s, "+
					"or --mode passthru)",
				s.parent.Name, s.parent.Name)
		}
	}
	if err := s.m.MayBeParent(l.Kind, s.parent); err != nil {
		return Interface{}, err
	}
	if err := s.agrees(ctx); err != nil {
		return Interface{}, err
	}
	if err := s.hasGuestsMAC(); err != nil {
		return Interface{}, err
	}
	if s.spec.MAC == nil {
		r.MAC = s.parent.MAC
	}
	s.name, s.altName = s.spec.InterfaceName()
	r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), s.parent.Name, l.Mode, l.RxFilter
	if l.Kind == vtap.IPVtap { // the kernel does not report the netns of its parent device
		r.Netns, err = s.m.NS.Inode()
	}
	return Interface{Name: s.name, MaxMTU: s.parent.MTU}, err
}

// hasGuestsMAC returns an error for a prepared ipvtap whose guest brings another address along than
// the parent device's: its frames would leave with it, and no answer would come back.
func (s *macvtapInterface) hasGuestsMAC() error {
	l, mac := s.spec.Lower, s.spec.MAC
	if !s.spec.Prepared || l.Kind != vtap.IPVtap || bytes.Equal(mac, s.parent.MAC) {
		return nil
	}
	return fmt.Errorf("an ipvtap has its parent device's address: %s has %s, and the guest comes with %s "+
		"(ip link set %[1]s address %[3]s, if it is spare; or --macvtap)", s.parent.Name, s.parent.MAC, mac)
}

// config returns the settings of the interface.
func (s *macvtapInterface) config() vtap.Config {
	c := s.spec.Lower.Config(s.name, s.spec.LowerMAC())
	if c.MAC == nil && c.Mode == "passthru" {
		c.MAC = s.parent.MAC
	}
	return c
}

func (s *macvtapInterface) steps(w making) []step.Step {
	s.pid = w.pid
	list := append([]step.Step{s.createStep(), s.settingsStep(w.underWay)}, s.policing(w)...)
	for _, a := range s.spec.Lower.Addrs {
		list = append(list, step.Step{
			Name: "address " + a.String(),
			Text: fmt.Sprintf("RTM_NEWADDR %s: %s, by which the kernel delivers", s.name, a),
			Do:   func(context.Context) error { return s.dev.AddAddr(a) },
		})
	}
	for i := range w.record.Queues {
		list = append(list, s.queueStep(i))
	}
	if s.altName != "" {
		list = append(list, step.Step{
			Name: "altname",
			Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
			Do:   func(context.Context) error { return s.dev.AddAltName(s.altName) },
		})
	}
	if !w.record.IsUp() {
		return list
	}
	return append(list, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do:   func(ctx context.Context) error { return s.m.Retry(ctx, s.parent, s.dev.Up) },
	})
}

func (s *macvtapInterface) createStep() step.Step {
	l := s.spec.Lower
	return step.Step{
		Name: string(l.Kind),
		Text: fmt.Sprintf("unshare(CLONE_NEWNET); RTM_NEWLINK %s: %s mode %s on %s, in that netns",
			s.name, l.Kind, l.Mode, l.Device),
		Do: func(ctx context.Context) (err error) {
			if err := s.agrees(ctx); err != nil { // again: the wait for the guest may take long
				return err
			}
			err = s.m.Retry(ctx, s.parent, func() (err error) {
				s.dev, err = macvlan.Create(s.m.NL, s.parent, s.config())
				return err
			})
			if err != nil {
				return err
			}
			if s.inode, err = s.dev.Netns().Inode(); err != nil {
				return err
			}
			s.files.Netns, err = s.dev.Netns().File()
			return err
		},
		Undo: func(context.Context) error { return s.undo() },
	}
}

// settingsStep writes the record, before a file can go anywhere.
func (s *macvtapInterface) settingsStep(alias string) step.Step {
	all := s.spec.Lower.AllMulti()
	text := fmt.Sprintf("RTM_SETLINK %s: inet6 addr_gen_mode none, allmulti %s, alias %q",
		s.name, nic.OnOff(all), alias)
	return step.Step{Name: "settings", Text: text, Do: func(context.Context) error {
		return s.dev.NL().SetQuiet(s.dev.Link.Index, rtnl.Alias(alias), rtnl.AllMulti(all))
	}}
}

func (s *macvtapInterface) queueStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("queue %d", i),
		Text: fmt.Sprintf("open the node of %s; TUNSETIFF IFF_TAP|IFF_NO_PI|IFF_VNET_HDR|IFF_MULTI_QUEUE: queue %d",
			s.name, i),
		Do: func(context.Context) error {
			if err := s.dev.OpenQueue(); err != nil {
				return err
			}
			s.files.Queues = s.dev.Queues()
			return nil
		},
	}
}

// undo removes the interface at once, unless QEMU still holds a queue: then it goes with that.
func (s *macvtapInterface) undo() error {
	if s.dev == nil {
		return nil
	}
	var errs []error
	if ns := s.dev.Netns(); ns != nil {
		var fds []int
		var err error
		if len(s.files.Queues) > 0 { // else QEMU cannot hold one, even if its files cannot be seen
			fds, err = macvlan.QueuesOf(s.pid, ns, s.dev.Link)
		}
		if err == nil && len(fds) == 0 {
			err = s.dev.Delete()
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, s.close())...)
}

func (s *macvtapInterface) close() error {
	s.files.Queues = nil
	err := closeFile(&s.files.Netns)
	if s.dev != nil {
		err = errors.Join(s.dev.Close(), err)
	}
	return err
}

func (s *macvtapInterface) verify(_ context.Context, w making) (*inventory.Device, error) {
	dev, open, err := s.m.InNetns(w.pid, s.inode)
	switch {
	case err != nil:
		return nil, err
	case !open:
		return nil, errors.New("the device is gone, QEMU did not keep it")
	case dev == nil:
		return nil, errors.New("the device cannot be found in the netns that QEMU holds")
	case dev.Up != w.record.IsUp():
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v", dev.Name, dev.Up)
	}
	return dev, s.m.Set(dev, rtnl.Alias(w.final))
}

// removalTime is how long the kernel may take to remove an interface whose last file was closed: a
// worker of its own does it.
const removalTime = 3 * time.Second

// Retry runs do again while an interface on the parent device is in its way that nobody holds any
// more, and that the kernel is about to remove. If do still fails, the error names the NICs on the
// parent device: they are in namespaces of their own, so ip-link(8) does not show them.
func (m *Maker) Retry(ctx context.Context, parent *rtnl.Link, do func() error) error {
	deadline := time.Now().Add(removalTime)
	for {
		err := do()
		inTheWay := errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EINVAL) ||
			errors.Is(err, syscall.EBUSY) && parent.Master == 0
		if !inTheWay {
			return err
		}
		named := m.withSiblings(ctx, err, parent.Name)
		if named != err || time.Now().After(deadline) {
			return named
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(4 * inventory.PollEvery):
		}
	}
}

// withSiblings adds to an error the names of the NICs on a parent device.
func (m *Maker) withSiblings(ctx context.Context, err error, parent string) error {
	if err == nil {
		return nil
	}
	all, listErr := m.Devices(ctx)
	if listErr != nil {
		return err
	}
	var names string
	for _, dev := range all {
		if dev.NetnsFile != nil && dev.Want.Source == parent && dev.Want.Phase != nic.PhaseAttaching {
			names += fmt.Sprintf(" %s/%s (%s, MAC %s)", dev.Want.VM, dev.Want.NIC, dev.Want.Mode, dev.MAC)
		}
	}
	if names == "" {
		return err
	}
	return fmt.Errorf("%w; on %s there is%s", err, parent, names)
}

// exclusive are the kinds of masters that take all frames of their ports, by the kernel's one
// rx_handler, so that nothing can be made on the ports. A VRF does not.
var exclusive = []string{"bridge", "bond", "team", "openvswitch"}

// MayBeParent returns an error for a device on which a macvtap, ipvtap or macvlan would receive
// nothing, or on which the kernel makes none.
func (m *Maker) MayBeParent(kind vtap.Kind, l *rtnl.Link) error {
	if master := m.MasterOf(l); master != nil && slices.Contains(exclusive, master.Kind) {
		return macvlan.Explain(m.NL, fmt.Errorf("%s on %s: %w", kind, l.Name, syscall.EBUSY), kind, l)
	}
	claimed, err := m.Claimed(l)
	if err == nil && claimed {
		err = fmt.Errorf("%w: %s", syscall.EBUSY, inventory.ClaimedText(l.Name, string(kind)))
	}
	return err
}

// ipvlanSibling is an ipvlan or ipvtap on the same parent device.
type ipvlanSibling struct {
	*rtnl.Link
	name string // the guest and its NIC, or an interface
}

// agrees returns an error for an ipvtap that would change the guests beside it: a parent device has
// one mode and one flag, and the kernel gives those of the latest ipvtap to all (ipvlan_link_new in
// drivers/net/ipvlan/ipvlan_main.c).
func (s *macvtapInterface) agrees(ctx context.Context) error {
	l := s.spec.Lower
	if l.Kind != vtap.IPVtap {
		return nil
	}
	all, err := s.ipvlanSiblings(ctx)
	if err != nil || len(all) == 0 {
		return err
	}
	wanted := l.Mode + " " + l.FlagName()
	there := macvlan.ModeName(all[0].Link) + " " + macvlan.FlagName(all[0].Link)
	if wanted == there {
		return nil
	}
	cure := "detach or remove what is there first"
	if mode, flag, _ := strings.Cut(there, " "); slices.Contains(vtap.Modes(l.Kind), mode) {
		cure = fmt.Sprintf("use --mode %s --flag %s, or %s", mode, flag, cure)
	}
	var names []string
	for _, o := range all {
		names = append(names, o.name)
	}
	return fmt.Errorf("%w: mode and flag are the same for all ipvtaps on %s, and %s would become %s for %s (%s)",
		syscall.EBUSY, s.parent.Name, there, wanted, strings.Join(names, ", "), cure)
}

// besideIt lists the ipvlans on the parent device, in all netns, and the ipvtaps in the Maker's.
func (s *macvtapInterface) besideIt(ctx context.Context) (found []peers.Child, err error) {
	err = s.m.WithPrivilege(func() error {
		v, err := peers.Look(ctx, s.m.NS, s.m.NL)
		if err == nil {
			found, err = v.Children()
		}
		return err
	})
	return slices.DeleteFunc(found, func(c peers.Child) bool {
		return c.IPVlan == nil || c.Parent.Index != s.parent.Index
	}), err
}

// ipvlanSiblings returns what shares the parent device with the NIC: other NICs, wherever they are,
// and what else is there, such as the ipvlans of containers. A parent device that is an ipvlan
// itself shares the one that it is on.
func (s *macvtapInterface) ipvlanSiblings(ctx context.Context) (found []ipvlanSibling, err error) {
	all, err := s.m.AllDevices(ctx)
	if err != nil {
		return nil, err
	}
	for _, dev := range all {
		self := dev.Want.VM == s.spec.VM && dev.Want.NIC == s.spec.NIC
		if dev.IPVlan != nil && dev.Lower == s.parent.Index && !self {
			found = append(found, ipvlanSibling{dev.Link, dev.Want.VM + "/" + dev.Want.NIC})
		}
	}
	beside, err := s.besideIt(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range beside {
		name := c.Name
		if !c.Space.Own {
			name += " in netns " + c.Space.Name()
		} else if _, managed := nic.ParseRecord(c.Alias); managed {
			continue
		}
		found = append(found, ipvlanSibling{c.Link, name})
	}
	if s.parent.IPVlan != nil {
		found = append(found, ipvlanSibling{s.parent, s.parent.Name})
	}
	return found, nil
}

func (s *macvtapInterface) policing(w making) []step.Step {
	return policing.Steps(s.m, s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) {
		if s.dev == nil {
			return nil, nil
		}
		return s.dev.NL(), s.dev.Link // in a netns of its own
	})
}
