package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// macvtapDevice is a macvtap or ipvtap on a network card.
type macvtapDevice struct {
	m             *Maker
	spec          nic.Spec
	lower         *rtnl.Link
	name, altName string

	pid   int // of the guest's VMM, known when the steps run
	dev   *macvlan.Device
	ns    *os.File // a copy of its netns fd
	inode uint64
}

// config returns the settings of the device.
func (s *macvtapDevice) config() vtap.Config {
	c := s.spec.Lower.Config(s.name, s.spec.MAC)
	if c.MAC == nil && c.Mode == "passthru" {
		c.MAC = s.lower.MAC
	}
	return c
}

func (s *macvtapDevice) Plan(ctx context.Context, r *nic.Record) (err error) {
	l := s.spec.Lower
	s.lower, err = s.m.NL.Link(l.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lower %s: %w (ip link shows the devices that are here)", l.Device, err)
	}
	if err != nil {
		return fmt.Errorf("lower %s: %w", l.Device, err)
	}
	if l.Kind == vtap.Macvtap && l.Mode != "passthru" {
		if wireless, err := macvlan.IsWireless(s.m.NS, s.lower.Name); err == nil && wireless {
			return fmt.Errorf("lower %s is a Wi-Fi card: access points drop frames whose sender is not the card itself, and a guest with an address of its own would be mute (use --ipvtap %s, which shares the card's address, or --mode passthru)", s.lower.Name, s.lower.Name)
		}
	}
	if err := s.m.MayBeParent(l.Kind, s.lower); err != nil {
		return err
	}
	if err := s.agrees(ctx); err != nil {
		return err
	}
	if s.spec.MAC == nil {
		r.MAC = s.lower.MAC
	}
	s.name, s.altName = s.spec.InterfaceName()
	r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), s.lower.Name, l.Mode, l.RxFilter
	if l.Kind == vtap.IPVtap { // the kernel does not tell the netns of its parent device
		r.Netns, err = s.m.NS.Inode()
	}
	return err
}

func (s *macvtapDevice) maxMTU() int { return s.lower.MTU }

func (s *macvtapDevice) queues() []*os.File {
	if s.dev == nil {
		return nil
	}
	return s.dev.Queues()
}

func (s *macvtapDevice) netns() *os.File { return s.ns }

func (s *macvtapDevice) Close() error {
	var errs []error
	if s.dev != nil {
		errs = append(errs, s.dev.Close())
	}
	if s.ns != nil {
		errs = append(errs, s.ns.Close())
		s.ns = nil
	}
	return errors.Join(errs...)
}

func (s *macvtapDevice) steps(pid int, alias string, queues int) []step.Step {
	s.pid = pid
	list := []step.Step{s.createStep(), s.settingsStep(alias)}
	for _, a := range s.spec.Lower.Addrs {
		list = append(list, step.Step{
			Name: "address " + a.String(),
			Text: fmt.Sprintf("RTM_NEWADDR %s: %s, by which the kernel delivers", s.name, a),
			Do:   func(context.Context) error { return s.dev.AddAddr(a) },
		})
	}
	for i := range queues {
		list = append(list, step.Step{
			Name: fmt.Sprintf("queue %d", i),
			Text: fmt.Sprintf("open the node of %s; TUNSETIFF IFF_TAP|IFF_NO_PI|IFF_VNET_HDR|IFF_MULTI_QUEUE: queue %d", s.name, i),
			Do:   func(context.Context) error { return s.dev.OpenQueue() },
		})
	}
	if s.altName != "" {
		list = append(list, step.Step{
			Name: "altname",
			Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
			Do:   func(context.Context) error { return s.dev.AddAltName(s.altName) },
		})
	}
	return append(list, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do:   func(ctx context.Context) error { return s.m.Retry(ctx, s.lower, s.dev.Up) },
	})
}

func (s *macvtapDevice) createStep() step.Step {
	l := s.spec.Lower
	return step.Step{
		Name: string(l.Kind),
		Text: fmt.Sprintf("unshare(CLONE_NEWNET); RTM_NEWLINK %s: %s mode %s on %s, in that netns", s.name, l.Kind, l.Mode, l.Device),
		Do: func(ctx context.Context) (err error) {
			if err := s.agrees(ctx); err != nil { // again: to wait for the guest may take long
				return err
			}
			err = s.m.Retry(ctx, s.lower, func() (err error) {
				s.dev, err = macvlan.Create(s.m.NL, s.lower, s.config())
				return err
			})
			if err != nil {
				return err
			}
			if s.inode, err = s.dev.Netns().Inode(); err != nil {
				return err
			}
			s.ns, err = s.dev.Netns().File()
			return err
		},
		Undo: func(context.Context) error { return s.undo() },
	}
}

// settingsStep comes before the device's fds go anywhere.
func (s *macvtapDevice) settingsStep(alias string) step.Step {
	all := s.spec.Lower.AllMulti()
	text := fmt.Sprintf("RTM_SETLINK %s: inet6 addr_gen_mode none, allmulti %s, alias %q", s.name, nic.OnOff(all), alias)
	return step.Step{Name: "settings", Text: text, Do: func(context.Context) error {
		return s.dev.NL().SetQuiet(s.dev.Link.Index, rtnl.Alias(alias), rtnl.AllMulti(all))
	}}
}

// undo removes the device at once, unless QEMU still holds a queue: then it goes with that.
func (s *macvtapDevice) undo() error {
	if s.dev == nil {
		return nil
	}
	var errs []error
	if ns := s.dev.Netns(); ns != nil {
		var fds []int
		var err error
		if len(s.queues()) > 0 { // else QEMU cannot have one, also where nobody may look
			fds, err = macvlan.QueuesOf(s.pid, ns, s.dev.Link)
		}
		if err == nil && len(fds) == 0 {
			err = s.dev.Delete()
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, s.Close())...)
}

// lingering is how long the kernel may take to remove a device whose last fd was closed: it does
// so in a worker of its own.
const lingering = 3 * time.Second

// Retry does on a lower what a device may be in the way of that nobody holds any more. Where
// one stays in the way, the error names our own NICs on the lower, which its
// netns does not show.
func (m *Maker) Retry(ctx context.Context, lower *rtnl.Link, do func() error) error {
	deadline := time.Now().Add(lingering)
	for {
		err := do()
		inTheWay := errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBUSY) && lower.Master == 0
		if !inTheWay {
			return err
		}
		named := m.withSiblings(ctx, err, lower.Name)
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

// withSiblings adds to an error which NICs are on a lower already.
func (m *Maker) withSiblings(ctx context.Context, err error, lower string) error {
	if err == nil {
		return nil
	}
	all, listErr := m.Devices(ctx)
	if listErr != nil {
		return err
	}
	var names string
	for _, dev := range all {
		if dev.NetnsFile != nil && dev.Want.Source == lower && dev.Want.Phase != nic.PhaseAttaching {
			names += fmt.Sprintf(" %s/%s (%s, MAC %s)", dev.Want.VM, dev.Want.NIC, dev.Want.Mode, dev.MAC)
		}
	}
	if names == "" {
		return err
	}
	return fmt.Errorf("%w; on %s there is%s", err, lower, names)
}

func (s *macvtapDevice) Verify(ctx context.Context, pid int, alias string) (*inventory.Device, error) {
	dev, open, err := s.m.InNetns(pid, s.inode)
	switch {
	case err != nil:
		return nil, err
	case !open:
		return nil, errors.New("the device is gone, QEMU did not keep it")
	case dev == nil:
		return nil, errors.New("the device cannot be found in the netns that QEMU holds")
	case !dev.Up:
		return nil, fmt.Errorf("somebody set %s down meanwhile", dev.Name)
	}
	return dev, s.m.Set(dev, rtnl.Alias(alias))
}
