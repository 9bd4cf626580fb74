package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/roster"
	"vmnet/internal/policing"
	"vmnet/internal/routed"
	"vmnet/internal/stablemac"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// maxTapMTU is MAX_MTU less an Ethernet header (drivers/net/tun.c).
const maxTapMTU = 65535 - 14

// UndoWait bounds how long an undo waits for the interface to go: it goes at once, unless QEMU does
// not answer and so still holds it.
const UndoWait = time.Second

// hostTap is what the taps of all NICs have in common. Its methods are the steps that make one.
type hostTap struct {
	m             *Maker
	spec          nic.Spec
	files         *qmp.Files
	name, altName string
	mtu           int  // in bytes
	staysDown     bool // the place leaves it down
	bare          bool // the tap has no vnet header, so that the guest leaves no checksum to others

	tap  *tun.Tap   // with the queues that are open here; nil before its step
	link *rtnl.Link // nil until the tap is there
}

// placedTap is a tap whose frames go to its place: to a bridge, or to the host that routes them.
type placedTap struct {
	hostTap
	place
}

// place is where the frames of a tap go.
type place interface {
	// planPlace reads what the steps need and changes nothing. It sets the record's part of the
	// place, and returns the place's part of the Interface.
	planPlace(ctx context.Context, s *hostTap, r *nic.Record) (Interface, error)
	// put returns the steps that put the tap there, which has its record by then.
	put(s *hostTap, w making) []step.Step
	// master returns the link that becomes the tap's master; nil for none.
	master() *rtnl.Link
	// found returns an error if the tap, whose link was read back, is not there.
	found(ctx context.Context, s *hostTap, dev *inventory.Device) error
}

// newPlacedTap returns a tap with the place that its Spec asks for.
func newPlacedTap(s hostTap) placedTap {
	switch {
	case s.spec.Routed != "":
		return placedTap{s, &uplinkPlace{}}
	case s.spec.Network != "":
		return placedTap{s, &networkPlace{}}
	}
	return placedTap{s, &bridgePlace{}}
}

// placeOf returns the place that a Spec names as a bridge: the bridge decides. One that is not
// there is left to the plan of a Linux bridge.
func (m *Maker) placeOf(ctx context.Context, spec nic.Spec) (place, error) {
	l, err := m.NL.Link(spec.Bridge)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &bridgePlace{}, nil
	case err != nil:
		return nil, err
	case l.MayBeOVS():
		return m.ovsPlaceOf(ctx, spec, l)
	case spec.OVSDB != "" || spec.IfaceID != "":
		return nil, fmt.Errorf("%s is no bridge of Open vSwitch, so --ovsdb and --iface-id do not concern it", l.Name)
	}
	return &bridgePlace{}, nil
}

func (s *placedTap) plan(ctx context.Context, r *nic.Record) (i Interface, err error) {
	s.name, s.altName = s.spec.InterfaceName()
	if s.spec.Bridge != "" {
		if s.place, err = s.m.placeOf(ctx, s.spec); err != nil {
			return i, err
		}
	}
	i, err = s.planPlace(ctx, &s.hostTap, r)
	i.Name, s.mtu = s.name, i.MaxMTU
	return i, err
}

func (s *placedTap) steps(w making) []step.Step {
	list := append(s.queueSteps(w.record.Queues), s.linkSteps(w.underWay)...)
	list = append(list, s.policing(w)...)
	return append(list, s.put(&s.hostTap, w)...)
}

func (s *placedTap) verify(ctx context.Context, w making) (*inventory.Device, error) {
	l, err := s.read()
	if err != nil {
		return nil, err
	}
	dev := &inventory.Device{Link: l, Want: w.record}
	err = s.found(ctx, &s.hostTap, dev)
	if l.Up == w.record.Prepared {
		err = errors.Join(fmt.Errorf("somebody changed %s meanwhile: up is %v", l.Name, l.Up), err)
	}
	if err != nil {
		return nil, err
	}
	return dev, s.finish(l, w.final)
}

// foundOn returns an error if a tap has another master than on, which is nil for none.
func foundOn(dev *inventory.Device, on *rtnl.Link) error {
	master := 0
	if on != nil {
		dev.MasterName, master = on.Name, on.Index
	}
	if dev.Master != master {
		return fmt.Errorf("somebody changed %s meanwhile: its bridge was changed", dev.Name)
	}
	return nil
}

// bridgePlace is a bridge.
type bridgePlace struct{ br *rtnl.Link }

func (p *bridgePlace) planPlace(_ context.Context, s *hostTap, r *nic.Record) (_ Interface, err error) {
	if p.br, err = bridges.Get(s.m.NL, s.spec.Bridge); err != nil {
		return Interface{}, err
	}
	return p.planPort(s, r)
}

// planPort is planPlace once the bridge was read.
func (p *bridgePlace) planPort(s *hostTap, r *nic.Record) (Interface, error) {
	if err := mayHaveTap(p.br, s.spec.Port); err != nil {
		return Interface{}, err
	}
	r.Type, r.Source, r.At, r.Port = nic.TypeTap, p.br.Name, p.br.Index, s.spec.Port.String()
	return Interface{MaxMTU: p.br.MTU, Bridge: p.br}, nil
}

func (p *bridgePlace) master() *rtnl.Link { return p.br }

func (p *bridgePlace) found(_ context.Context, _ *hostTap, dev *inventory.Device) error {
	return foundOn(dev, p.br)
}

func (p *bridgePlace) put(s *hostTap, _ making) []step.Step {
	add, state := bridges.AddPort, "up"
	if s.staysDown {
		add, state = bridges.AddPortDown, "down"
	}
	return []step.Step{{
		Name: "port",
		Text: fmt.Sprintf("RTM_SETLINK %s: master %s%s, %s", s.name, p.br.Name, portText(s.spec.Port), state),
		Do:   func(context.Context) error { return add(s.m.NL, p.br, s.link, s.spec.Port) },
	}}
}

// networkPlace is the bridge of a network, whose server knows the guest.
type networkPlace struct {
	bridgePlace
	join *roster.Join
}

func (p *networkPlace) planPlace(_ context.Context, s *hostTap, r *nic.Record) (i Interface, err error) {
	g := roster.Guest{VM: s.spec.VM, NIC: s.spec.NIC, MAC: s.spec.MAC, IP: s.spec.IP}
	if p.join, err = roster.Plan(s.m.NL, s.m.Networks, s.spec.Network, g); err != nil {
		return i, err
	}
	p.br = p.join.Bridge
	i, err = p.planPort(s, r)
	i.Notices, i.Join = p.join.Notices, p.join
	return i, err
}

func (p *networkPlace) put(s *hostTap, w making) []step.Step {
	return append(p.bridgePlace.put(s, w), p.join.Steps(func() int { return s.link.Index })...)
}

// uplinkPlace is the host, which routes the guest's addresses and answers for them on an uplink.
type uplinkPlace struct{ steps []step.Step }

func (p *uplinkPlace) planPlace(_ context.Context, s *hostTap, r *nic.Record) (i Interface, err error) {
	h := s.m.Routed()
	uplink, err := h.Uplink(s.spec.Routed)
	if err != nil {
		return i, err
	}
	if claimed, err := s.m.Claimed(uplink); err != nil || claimed {
		return i, cmp.Or(err, errors.New(inventory.ClaimedText(uplink.Name, nic.TypeRouted)))
	}
	n := routed.NIC{Tap: s.name, Uplink: uplink.Index, IPs: s.spec.IP}
	i.MaxMTU = min(uplink.MTU, maxTapMTU)
	if i.Notices, err = h.Check(n, uplink); err != nil {
		return i, err
	}
	r.Type, r.Source, r.At = nic.TypeRouted, uplink.Name, uplink.Index
	if s.spec.Prepared {
		p.steps, err = h.PreparedSteps(n)
	} else {
		p.steps, err = h.Steps(n, uplink)
	}
	return i, err
}

func (p *uplinkPlace) master() *rtnl.Link { return nil }

func (p *uplinkPlace) put(*hostTap, making) []step.Step { return p.steps }

func (p *uplinkPlace) found(_ context.Context, _ *hostTap, dev *inventory.Device) error {
	return foundOn(dev, nil)
}

// TidyHost removes what routed and shaped NICs have left on the host that have gone.
func (m *Maker) TidyHost(ctx context.Context) error {
	_, err := m.Routed().Tidy(ctx, false)
	_, shaperErr := ratelimit.Tidy(m.NL, false)
	return errors.Join(err, shaperErr)
}

// mayHaveTap returns an error if a tap with those settings cannot work on the bridge.
func mayHaveTap(br *rtnl.Link, port brport.Settings) error {
	if br.MTU > maxTapMTU {
		return fmt.Errorf(
			"bridge %s: its MTU of %d bytes is more than the %d that a tap can have (ip link set %s mtu %d)",
			br.Name, br.MTU, maxTapMTU, br.Name, maxTapMTU)
	}
	if bridges.NoVLAN(br, port) {
		return fmt.Errorf(
			"bridge %s has no default VLAN (vlan_default_pvid 0), so a port without one passes no frames "+
				"(name one with --vlan, or several with --trunk)", br.Name)
	}
	return nil
}

// portText returns the settings of a port for a step's text.
func portText(cfg brport.Settings) string {
	if cfg.IsZero() {
		return ""
	}
	return " with " + cfg.String()
}

// queueSteps make the tap and open all its queues, for the VMM.
func (s *hostTap) queueSteps(queues int) []step.Step {
	multi := queues > 1
	list := []step.Step{s.createStep(multi, func(context.Context) error {
		create := tun.Create
		if s.bare {
			create = tun.CreateBare
		}
		if err := s.take(create(s.m.NS, s.name, multi)); err != nil {
			return err
		}
		s.files.Queues = s.tap.Queues()
		return nil
	})}
	for i := 1; i < queues; i++ {
		list = append(list, step.Step{
			Name: fmt.Sprintf("queue %d", i),
			Text: fmt.Sprintf("open %s; TUNSETIFF %s: queue %d", tun.Device, s.name, i),
			Do: func(context.Context) error {
				if err := s.tap.AddQueue(); err != nil {
					return err
				}
				s.files.Queues = s.tap.Queues()
				return nil
			},
		})
	}
	return list
}

// createStep runs create, which takes a new tap.
func (s *hostTap) createStep(multi bool, create func(context.Context) error) step.Step {
	flags := "IFF_TAP|IFF_NO_PI|IFF_VNET_HDR|IFF_TUN_EXCL"
	if s.bare {
		flags = "IFF_TAP|IFF_NO_PI|IFF_TUN_EXCL"
	}
	if multi {
		flags += "|IFF_MULTI_QUEUE"
	}
	return step.Step{
		Name: "tap",
		Text: fmt.Sprintf("open %s; TUNSETIFF %s %s", tun.Device, s.name, flags),
		Do:   create,
		// Closing the queues here removes the tap, once QEMU has closed its own.
		Undo: func(ctx context.Context) error {
			err := s.close()
			if s.link == nil {
				return err
			}
			return errors.Join(err, s.m.WaitGoneFor(ctx, &inventory.Device{Link: s.link}, UndoWait))
		},
	}
}

// take keeps a tap that was just made, and reads its link.
func (s *hostTap) take(tap *tun.Tap, err error) error {
	if err != nil {
		return s.explainTaken(err)
	}
	s.tap = tap
	s.link, err = s.m.NL.Link(s.name)
	return err
}

// explainTaken says what has the tap's name.
func (s *hostTap) explainTaken(err error) error {
	l, readErr := s.m.NL.Link(s.name)
	if readErr != nil {
		return err
	}
	cure := "use another --nic"
	if s.spec.Device != "" { // the domain's XML has chosen the name
		cure = "give one of the two interfaces another <target dev=...>"
	}
	return fmt.Errorf("%w: %w: interface %s, %s (%s)", nic.ErrExist, err, l.Name, ownerText(l), cure)
}

// ownerText says whose an interface is.
func ownerText(l *rtnl.Link) string {
	if r, ok := nic.ParseRecord(l.Alias); ok {
		return fmt.Sprintf("which is %s/%s", r.VM, r.NIC)
	}
	return "which vmnet did not make"
}

// linkSteps write the record and the names. They come before the tap's files go anywhere, so that
// the link always says whose it is.
func (s *hostTap) linkSteps(alias string) []step.Step {
	mac := stablemac.HostMAC(s.spec.MAC)
	attrs, carrier := []rtnl.Attr{rtnl.Alias(alias), rtnl.MAC(mac), rtnl.MTU(s.mtu)}, ""
	if s.spec.LinkDown {
		attrs, carrier = append(attrs, rtnl.Carrier(false)), ", carrier off"
	}
	list := []step.Step{{
		Name: "settings",
		Text: fmt.Sprintf("RTM_SETLINK %s: address %s, mtu %d, inet6 addr_gen_mode none%s, alias %q",
			s.name, mac, s.mtu, carrier, alias),
		Do: func(context.Context) error { return s.m.NL.SetQuiet(s.link.Index, attrs...) },
	}}
	if s.altName != "" {
		list = append(list, step.Step{
			Name: "altname",
			Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
			Do:   func(context.Context) error { return s.m.NL.AddAltName(s.link.Index, s.altName) },
		})
	}
	return list
}

// read reads the tap's link again.
func (s *hostTap) read() (*rtnl.Link, error) {
	l, err := s.m.NL.LinkByIndex(s.link.Index)
	if err != nil {
		return nil, fmt.Errorf("the tap is gone, QEMU did not keep it: %w", err)
	}
	return l, nil
}

// finish sets the final alias.
func (s *hostTap) finish(l *rtnl.Link, alias string) error {
	attrs := []rtnl.Attr{rtnl.Alias(alias)}
	if want := stablemac.HostMAC(s.spec.MAC); l.MAC.String() != want.String() {
		attrs = append(attrs, rtnl.MAC(want)) // udev's MACAddressPolicy has changed it
	}
	return s.m.NL.Set(l.Index, attrs...)
}

func (s *hostTap) close() error {
	s.files.Queues = nil
	if s.tap == nil {
		return nil
	}
	return s.tap.Close()
}

func (s *hostTap) policing(w making) []step.Step {
	return policing.Steps(s.m, s.name, w.record, func() (*rtnl.Conn, *rtnl.Link) { return s.m.NL, s.link })
}
