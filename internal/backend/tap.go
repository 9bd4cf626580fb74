package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/stablemac"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// maxTapMTU is MAX_MTU less an Ethernet header (drivers/net/tun.c).
const maxTapMTU = 65535 - 14

// bridgeTap is a tap on a bridge.
type bridgeTap struct {
	m             *Maker
	Spec          nic.Spec
	br            *rtnl.Link
	mtu           int // of the tap
	name, altName string
	multi         bool
	byName        bool // it is handed over by its name

	tap  *tun.Tap
	Link *rtnl.Link
}

func (s *bridgeTap) Plan(_ context.Context, r *nic.Record) (err error) {
	if s.br, err = bridges.Get(s.m.NL, s.Spec.Bridge); err != nil {
		return err
	}
	s.name, s.altName = s.Spec.InterfaceName()
	if s.br.MTU > maxTapMTU {
		return fmt.Errorf("bridge %s: its MTU of %d bytes is more than the %d that a tap can have (ip link set %s mtu %d)", s.br.Name, s.br.MTU, maxTapMTU, s.br.Name, maxTapMTU)
	}
	if bridges.NoVLAN(s.br, s.Spec.Port) {
		return fmt.Errorf("bridge %s filters VLANs and has no default one (vlan_default_pvid 0), so that nothing would pass a port that is in none: name one with --vlan N, or several with --trunk", s.br.Name)
	}
	s.mtu = s.br.MTU
	r.Type, r.Source, r.At, r.Port = nic.TypeTap, s.br.Name, s.br.Index, s.Spec.Port.String()
	return nil
}

func (s *bridgeTap) maxMTU() int { return s.mtu }

func (s *bridgeTap) queues() []*os.File {
	if s.tap == nil {
		return nil
	}
	return s.tap.Queues()
}

func (s *bridgeTap) netns() *os.File { return nil }

func (s *bridgeTap) Close() error { return s.tap.Close() }

func (s *bridgeTap) steps(_ int, alias string, queues int) []step.Step {
	return append(s.queueSteps(queues), s.portSteps(alias)...)
}

// queueSteps make the tap, with all queues open.
func (s *bridgeTap) queueSteps(queues int) []step.Step {
	s.multi = queues > 1
	list := []step.Step{s.tapStep()}
	for i := 1; i < queues; i++ {
		list = append(list, step.Step{
			Name: fmt.Sprintf("queue %d", i),
			Text: fmt.Sprintf("open %s; TUNSETIFF %s: queue %d", tun.Device, s.name, i),
			Do:   func(context.Context) error { return s.tap.AddQueue() },
		})
	}
	return list
}

// portSteps make a tap that is there a port of its bridge.
func (s *bridgeTap) portSteps(alias string) []step.Step {
	return append(s.linkSteps(alias), step.Step{
		Name: "port",
		Text: fmt.Sprintf("RTM_SETLINK %s: master %s%s, up", s.name, s.br.Name, portText(s.Spec.Port)),
		Do:   func(context.Context) error { return bridges.AddPort(s.m.NL, s.br, s.Link, s.Spec.Port) },
	})
}

// linkSteps say on the link what it is.
func (s *bridgeTap) linkSteps(alias string) []step.Step {
	list := []step.Step{s.settingsStep(alias)}
	if s.altName != "" {
		list = append(list, step.Step{
			Name: "altname",
			Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
			Do:   func(context.Context) error { return s.m.NL.AddAltName(s.Link.Index, s.altName) },
		})
	}
	return list
}

// portText names the settings of a port for a step's text.
func portText(cfg brport.Settings) string {
	if cfg.IsZero() {
		return ""
	}
	return " with " + cfg.String()
}

// UndoWait bounds how long an undo watches for the device to go: it goes at once, unless
// QEMU does not answer and so still holds it.
const UndoWait = time.Second

// create makes the tap. One that is handed over by its name gets an index that nobody can have
// guessed: see rtnl.RandomIndex.
func (s *bridgeTap) create() (*tun.Tap, error) {
	if s.byName {
		return tun.CreateAt(s.m.NS, s.name, s.multi, rtnl.RandomIndex())
	}
	return tun.Create(s.m.NS, s.name, s.multi)
}

func (s *bridgeTap) tapStep() step.Step {
	flags := "IFF_TAP|IFF_NO_PI|IFF_VNET_HDR|IFF_TUN_EXCL"
	if s.multi {
		flags += "|IFF_MULTI_QUEUE"
	}
	return step.Step{
		Name: "tap",
		Text: fmt.Sprintf("open %s; TUNSETIFF %s %s", tun.Device, s.name, flags),
		Do: func(context.Context) (err error) {
			if s.tap, err = s.create(); err != nil {
				return s.explainTaken(err)
			}
			s.Link, err = s.m.NL.Link(s.name)
			return err
		},
		// Closing our queues removes the tap, once QEMU has given back its own.
		Undo: func(ctx context.Context) error {
			if s.tap == nil {
				return nil
			}
			err := s.tap.Close()
			if s.Link == nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, UndoWait)
			defer cancel()
			return errors.Join(err, s.m.WaitGone(ctx, &inventory.Device{Link: s.Link}))
		},
	}
}

// explainTaken tells who has the name.
func (s *bridgeTap) explainTaken(err error) error {
	l, readErr := s.m.NL.Link(s.name)
	if readErr != nil {
		return err
	}
	cure := "use another --nic"
	if s.Spec.Device != "" { // by a domain's XML
		cure = "give one of the two interfaces another <target dev=...>"
	}
	return fmt.Errorf("%w: %w: interface %s, %s (%s)", nic.ErrExist, err, l.Name, OwnerText(l), cure)
}

// OwnerText tells whose a device is.
func OwnerText(l *rtnl.Link) string {
	if r, ok := nic.ParseRecord(l.Alias); ok {
		return fmt.Sprintf("which is %s/%s", r.VM, r.NIC)
	}
	return "which vmnet did not make"
}

// settingsStep comes before the tap's fds go anywhere, so that whoever finds the
// link can tell whose it is.
func (s *bridgeTap) settingsStep(alias string) step.Step {
	mac := stablemac.HostMAC(s.Spec.MAC)
	return step.Step{
		Name: "settings",
		Text: fmt.Sprintf("RTM_SETLINK %s: address %s, mtu %d, inet6 addr_gen_mode none, alias %q", s.name, mac, s.mtu, alias),
		Do: func(context.Context) error {
			return s.m.NL.SetQuiet(s.Link.Index, rtnl.Alias(alias), rtnl.MAC(mac), rtnl.MTU(s.mtu))
		},
	}
}

func (s *bridgeTap) Verify(_ context.Context, _ int, alias string) (*inventory.Device, error) {
	l, err := s.m.NL.LinkByIndex(s.Link.Index)
	if err != nil {
		return nil, fmt.Errorf("the tap is gone, QEMU did not keep it: %w", err)
	}
	if l.Master != s.br.Index || !l.Up {
		return nil, fmt.Errorf("somebody changed %s meanwhile: up is %v, its bridge was changed: %v", l.Name, l.Up, l.Master != s.br.Index)
	}
	return &inventory.Device{Link: l, MasterName: s.br.Name}, s.finish(l, alias)
}

// finish sets the final alias.
func (s *bridgeTap) finish(l *rtnl.Link, alias string) error {
	attrs := []rtnl.Attr{rtnl.Alias(alias)}
	if want := stablemac.HostMAC(s.Spec.MAC); l.MAC.String() != want.String() {
		attrs = append(attrs, rtnl.MAC(want)) // udev's MACAddressPolicy was quicker
	}
	return s.m.NL.Set(l.Index, attrs...)
}
