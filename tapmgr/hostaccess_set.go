package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// SetHostAccess makes the host and the macvtap guests on a lower reach each other, or takes
// that back. It is a lasting choice: only SetHostAccess, or a reboot, ends it. On again adds the
// addresses that are missing and changes nothing else; off again is success. The result is what is
// there now, or was until now. Either all is done or nothing.
func (m *Manager) SetHostAccess(ctx context.Context, lower string, on bool, addrs []netip.Prefix) (h HostAccess, changed bool, err error) {
	if err := validateHostAccess(lower, on, addrs); err != nil {
		return HostAccess{}, false, step.WithStage(nic.ErrInvalid, err)
	}
	if !on {
		h, changed, err = m.hostAccessOff(ctx, lower)
	} else {
		h, changed, err = m.hostAccessOnce(ctx, lower, addrs)
		if errors.Is(err, errMeanwhile) {
			h, changed, err = m.hostAccessOnce(ctx, lower, addrs)
		}
	}
	if err != nil {
		return HostAccess{}, false, fmt.Errorf("host access on %s: %w", lower, err)
	}
	return h, changed, nil
}

// errMeanwhile is another vmnet that made the same at the same time.
var errMeanwhile = errors.New("it was made meanwhile: try again")

func validateHostAccess(lower string, on bool, addrs []netip.Prefix) error {
	if lower == "" {
		return errors.New("no lower is named")
	}
	if !on && len(addrs) > 0 {
		return errors.New("addresses are given to host access that is on")
	}
	for _, a := range addrs {
		if ip := a.Addr(); !a.IsValid() || ip.Is4In6() || ip.IsMulticast() || ip.IsUnspecified() {
			return fmt.Errorf("address %s: want one of a host with its prefix length, such as 10.0.0.1/24 or fd00::1/64", a)
		}
	}
	return nil
}

func (m *Manager) hostAccessOff(ctx context.Context, lower string) (HostAccess, bool, error) {
	link, err := m.lower(lower)
	if err == nil {
		lower = link.Name // it may have been named by an altname
	} else if !errors.Is(err, fs.ErrNotExist) {
		return HostAccess{}, false, err
	}
	h, findErr := m.hostAccessOn(lower) // it stays behind when its lower goes to another netns
	if findErr != nil || h == nil {
		return HostAccess{Lower: lower}, false, cmp.Or(findErr, err)
	}
	was := m.describeHostAccess(*h)
	return was, true, m.run(ctx, []step.Step{{
		Name: "delete",
		Text: fmt.Sprintf("RTM_DELLINK %s", h.Name),
		Do: func(context.Context) error {
			now, err := m.hostAccessOn(lower)
			if err != nil || now == nil || now.Index != h.Index {
				return err
			}
			return mayNot(rtnl.IgnoreNotExist(m.host.NL.Delete(h.Index)))
		},
	}})
}

// hostAccessOnce switches host access on, unless it is on already.
func (m *Manager) hostAccessOnce(ctx context.Context, lower string, addrs []netip.Prefix) (HostAccess, bool, error) {
	link, err := m.lower(lower)
	if err != nil {
		return HostAccess{}, false, err
	}
	there, err := m.hostAccessOn(link.Name)
	if err != nil {
		return HostAccess{}, false, err
	}
	s := &switchingOn{m: m, lower: link}
	s.name, s.altName = nic.InterfaceName(link.Name, "host")
	var list []step.Step
	if there == nil {
		if err := cmp.Or(m.mayBeLower(link), s.nameIsFree()); err != nil {
			return HostAccess{}, false, err
		}
		list = append(list, s.createStep())
	} else {
		s.link, s.name = there.Link, there.Name
	}
	list = append(list, s.stepsFor(there, addrs)...)
	if len(list) == 0 {
		return m.describeHostAccess(*there), false, nil
	}
	if err := m.run(ctx, list); err != nil {
		return HostAccess{}, false, err
	}
	now, err := m.hostAccessOn(link.Name)
	if err != nil || now == nil { // after a dry run there is none
		return HostAccess{Lower: link.Name, Interface: s.name}, true, err
	}
	h := m.describeHostAccess(*now)
	h.Added = s.added
	return h, true, nil
}

// mayBeLower refuses what a macvlan on it could not work with.
func (m *Manager) mayBeLower(l *rtnl.Link) error {
	if l.Macvlan != nil || l.IPVlan != nil {
		return fmt.Errorf("%s is a %s itself: name the device that it sits on", l.Name, l.Kind)
	}
	if err := macvtap.CheckLower(TypeMacvlan, l); err != nil {
		return err
	}
	if err := m.host.MayBeParent(TypeMacvlan, l); err != nil {
		return err
	}
	if wireless, err := macvtap.IsWireless(m.host.NS, l.Name); err == nil && wireless {
		return fmt.Errorf("%s is a Wi-Fi card: access points drop frames whose sender is not the card itself, so a macvlan on it would be mute, as would macvtap guests (use a bridge of its own for host and guests, and route)", l.Name)
	}
	return nil
}

// switchingOn is a host access that is being made or completed.
type switchingOn struct {
	m             *Manager
	lower         *rtnl.Link
	name, altName string

	link  *rtnl.Link     // of the macvlan, once it is there
	made  bool           // by us
	added []netip.Prefix // by us
}

func (s *switchingOn) nameIsFree() error {
	l, err := s.m.host.NL.Link(s.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if h, ok := s.m.asHostAccess(l); ok && h.lower == s.lower.Name {
		return errMeanwhile
	} else if ok {
		return fmt.Errorf("interface %s: %w, and is the host access of %s, which was once called %s (switch that off first)", s.name, fs.ErrExist, h.lower, s.lower.Name)
	}
	return fmt.Errorf("interface %s: %w, and is not vmnet's host access but a %s (rename or remove it)", s.name, fs.ErrExist, cmp.Or(l.Kind, "physical device"))
}

// createStep makes the macvlan. Its address goes along, so that udev does not choose another one.
func (s *switchingOn) createStep() step.Step {
	mac := hostAccessMAC(s.lower.Name)
	return step.Step{
		Name: "macvlan",
		Text: fmt.Sprintf("RTM_NEWLINK %s: macvlan mode bridge on %s, MAC %s, MTU %d", s.name, s.lower.Name, mac, s.lower.MTU),
		Do: func(ctx context.Context) error {
			err := s.m.host.Retry(ctx, s.lower, func() error {
				const modeBridge = 4 // MACVLAN_MODE_BRIDGE of include/uapi/linux/if_link.h
				err := s.m.host.NL.Create("macvlan", rtnl.Name(s.name), rtnl.Lower(s.lower.Index), rtnl.MAC(mac), rtnl.MTU(s.lower.MTU), rtnl.MacvlanMode(modeBridge))
				return s.explain(err)
			})
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s: %w: %w", s.name, err, errMeanwhile)
			}
			if err != nil {
				return err
			}
			s.made = true
			s.link, err = s.m.host.NL.Link(s.name)
			return err
		},
		Undo: func(context.Context) error { return s.undo() },
	}
}

func (s *switchingOn) explain(err error) error {
	return macvtap.Explain(s.m.host.NL, err, TypeMacvlan, s.lower)
}

// undo removes what createStep made.
func (s *switchingOn) undo() error {
	if !s.made {
		return nil
	}
	if s.link == nil { // it was made, and could not be read
		l, err := s.m.host.NL.Link(s.name)
		if err != nil {
			return rtnl.IgnoreNotExist(err)
		}
		s.link = l
	}
	return rtnl.IgnoreNotExist(s.m.host.NL.Delete(s.link.Index))
}

// stepsFor are the steps that complete a macvlan, there nil where it is made by a step before.
func (s *switchingOn) stepsFor(there *hostAccess, addrs []netip.Prefix) (list []step.Step) {
	if there == nil || there.unnamed {
		list = append(list, s.aliasStep())
		if s.altName != "" && (there == nil || !slices.Contains(there.AltNames, s.altName)) {
			list = append(list, s.altNameStep())
		}
		list = append(list, s.noRouterStep())
	}
	for i, a := range addrs {
		if !slices.Contains(addrs[:i], a) && (there == nil || !slices.Contains(there.addresses, a)) {
			list = append(list, s.addressStep(a))
		}
	}
	if there == nil || !there.Up {
		list = append(list, s.upStep())
	}
	return list
}

func (s *switchingOn) aliasStep() step.Step {
	text := hostAccessAlias + alias.Escape(s.lower.Name)
	return step.Step{
		Name: "alias",
		Text: fmt.Sprintf("RTM_SETLINK %s: alias %q", s.name, text),
		Do:   func(context.Context) error { return mayNot(s.m.host.NL.Set(s.link.Index, rtnl.Alias(text))) },
	}
}

func (s *switchingOn) altNameStep() step.Step {
	return step.Step{
		Name: "altname",
		Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", s.name, s.altName),
		Do:   func(context.Context) error { return s.m.host.NL.AddAltName(s.link.Index, s.altName) },
	}
}

// noRouterStep keeps the host from taking a second default route and more addresses from the IPv6
// routers that the lower hears anyway. Where there is no IPv6, or /proc/sys cannot be written (in a
// container), there is nothing to do, or it stays as the administrator of that has set it.
func (s *switchingOn) noRouterStep() step.Step {
	path := "/proc/sys/net/ipv6/conf/" + s.name + "/accept_ra"
	return step.Step{
		Name: "no router",
		Text: fmt.Sprintf("write 0 to %s", path),
		Do: func(context.Context) error {
			err := s.m.host.NS.Do(func() error { return os.WriteFile(path, []byte("0"), 0) })
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		},
	}
}

func (s *switchingOn) addressStep(a netip.Prefix) step.Step {
	added := false
	return step.Step{
		Name: "address " + a.String(),
		Text: fmt.Sprintf("RTM_NEWADDR %s: %s", s.name, a),
		Do: func(context.Context) error {
			err := s.m.host.NL.AddAddr(s.link.Index, a)
			if errors.Is(err, fs.ErrExist) {
				return nil // a link-local one, or another vmnet was quicker
			}
			if errors.Is(err, syscall.EACCES) && a.Addr().Is6() {
				return fmt.Errorf("%w (IPv6 is switched off: sysctl net.ipv6.conf.%s.disable_ipv6=0)", err, strings.ReplaceAll(s.name, ".", "/"))
			}
			if err != nil {
				return mayNot(err)
			}
			added, s.added = true, append(s.added, a)
			return nil
		},
		Undo: func(context.Context) error {
			if !added || s.made { // with the device, its addresses go
				return nil
			}
			return rtnl.IgnoreNotExist(s.m.host.NL.DeleteAddr(s.link.Index, a))
		},
	}
}

func (s *switchingOn) upStep() step.Step {
	return step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", s.name),
		Do: func(context.Context) error {
			return s.explain(s.m.host.NL.Set(s.link.Index, rtnl.Up(true)))
		},
		Undo: func(context.Context) error {
			if s.made || s.link == nil {
				return nil
			}
			return rtnl.IgnoreNotExist(s.m.host.NL.Set(s.link.Index, rtnl.Up(false)))
		},
	}
}

// mayNot adds the cure where rights are missing.
func mayNot(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}
