package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/roster"
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
	mtu           int // in bytes

	tap  *tun.Tap   // with the queues that are open here; nil before its step
	link *rtnl.Link // nil until the tap is there
}

// bridgeTap is a tap on a bridge.
type bridgeTap struct {
	hostTap
	br *rtnl.Link
}

func (s *bridgeTap) plan(_ context.Context, r *nic.Record) (_ Interface, err error) {
	if s.spec.Network != "" {
		s.br, err = roster.Bridge(s.m.NL, s.m.networks(), s.spec.Network)
	} else {
		s.br, err = bridges.Get(s.m.NL, s.spec.Bridge)
	}
	if err != nil {
		return Interface{}, err
	}
	if err := mayHaveTap(s.br, s.spec.Port); err != nil {
		return Interface{}, err
	}
	s.name, s.altName = s.spec.InterfaceName()
	s.mtu = s.br.MTU
	r.Type, r.Source, r.At, r.Port = nic.TypeTap, s.br.Name, s.br.Index, s.spec.Port.String()
	return Interface{Name: s.name, MaxMTU: s.mtu, Bridge: s.br}, nil
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
			"bridge %s filters VLANs and has no default one (vlan_default_pvid 0), so a port in no VLAN would pass no frames: "+
				"name one with --vlan N, or several with --trunk", br.Name)
	}
	return nil
}

func (s *bridgeTap) steps(w making) []step.Step {
	list := append(s.queueSteps(w.record.Queues), s.linkSteps(w.underWay)...)
	return append(list, s.portStep())
}

func (s *bridgeTap) portStep() step.Step {
	return step.Step{
		Name: "port",
		Text: fmt.Sprintf("RTM_SETLINK %s: master %s%s, up", s.name, s.br.Name, portText(s.spec.Port)),
		Do:   func(context.Context) error { return bridges.AddPort(s.m.NL, s.br, s.link, s.spec.Port) },
	}
}

// portText returns the settings of a port for a step's text.
func portText(cfg brport.Settings) string {
	if cfg.IsZero() {
		return ""
	}
	return " with " + cfg.String()
}

func (s *bridgeTap) verify(_ context.Context, w making) (*inventory.Device, error) {
	l, err := s.read()
	if err != nil {
		return nil, err
	}
	if l.Master != s.br.Index || !l.Up {
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v, its bridge was changed: %v",
			l.Name, l.Up, l.Master != s.br.Index)
	}
	return &inventory.Device{Link: l, MasterName: s.br.Name}, s.finish(l, w.final)
}

// queueSteps make the tap and open all its queues, for the VMM.
func (s *hostTap) queueSteps(queues int) []step.Step {
	multi := queues > 1
	list := []step.Step{s.createStep(multi, func(context.Context) error {
		if err := s.take(tun.Create(s.m.NS, s.name, multi)); err != nil {
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
	list := []step.Step{{
		Name: "settings",
		Text: fmt.Sprintf("RTM_SETLINK %s: address %s, mtu %d, inet6 addr_gen_mode none, alias %q",
			s.name, mac, s.mtu, alias),
		Do: func(context.Context) error {
			return s.m.NL.SetQuiet(s.link.Index, rtnl.Alias(alias), rtnl.MAC(mac), rtnl.MTU(s.mtu))
		},
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
