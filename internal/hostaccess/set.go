package hostaccess

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
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Set switches the host access of a parent device on or off, by its name or altname. On again adds
// the addresses that are missing and changes nothing else; off again succeeds. Set returns what is
// there now, or was until now. If it fails it leaves everything as it was. Inconsistent
// arguments are an error that matches nic.ErrInvalid.
func (h *Host) Set(ctx context.Context, parent string, on bool,
	addrs []netip.Prefix,
) (a nic.HostAccess, changed bool, err error) {
	if err := validate(parent, on, addrs); err != nil {
		return nic.HostAccess{}, false, step.WithStage(nic.ErrInvalid, err)
	}
	if !on {
		a, changed, err = h.switchOff(ctx, parent)
	} else {
		a, changed, err = h.switchOn(ctx, parent, addrs)
		if errors.Is(err, errConcurrent) {
			a, changed, err = h.switchOn(ctx, parent, addrs)
		}
	}
	if err != nil {
		return nic.HostAccess{}, false, fmt.Errorf("host access on %s: %w", parent, err)
	}
	return a, changed, nil
}

// errConcurrent is returned when another vmnet made the same macvlan at the same time.
var errConcurrent = errors.New("another vmnet made it at the same time: try again")

func validate(parent string, on bool, addrs []netip.Prefix) error {
	if parent == "" {
		return errors.New("no parent device is named")
	}
	if !on && len(addrs) > 0 {
		return errors.New("addresses need host access that is on")
	}
	for _, a := range addrs {
		if ip := a.Addr(); !a.IsValid() || ip.Is4In6() || ip.IsMulticast() || ip.IsUnspecified() {
			return fmt.Errorf(
				"address %s: want one of a host with its prefix length, such as 10.0.0.1/24 or fd00::1/64", a)
		}
	}
	return nil
}

func (h *Host) switchOff(ctx context.Context, parent string) (nic.HostAccess, bool, error) {
	link, err := h.parent(parent)
	if err == nil {
		parent = link.Name // it may have been named by an altname
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nic.HostAccess{}, false, err
	}
	m, findErr := h.on(parent) // it stays behind when its parent device is moved to another netns
	if findErr != nil || m == nil {
		return nic.HostAccess{Parent: parent}, false, cmp.Or(findErr, err)
	}
	was := h.describe(*m)
	return was, true, h.maker.Run.Do(ctx, []step.Step{{
		Name: "delete",
		Text: fmt.Sprintf("RTM_DELLINK %s", m.Name),
		Do: func(context.Context) error {
			now, err := h.on(parent)
			if err != nil || now == nil || now.Index != m.Index {
				return err
			}
			return explainEPERM(rtnl.IgnoreNotExist(h.maker.NL.Delete(m.Index)))
		},
	}})
}

// switchOn switches host access on, unless it is on already.
func (h *Host) switchOn(ctx context.Context, parent string, addrs []netip.Prefix) (nic.HostAccess, bool, error) {
	link, err := h.parent(parent)
	if err != nil {
		return nic.HostAccess{}, false, err
	}
	there, err := h.on(link.Name)
	if err != nil {
		return nic.HostAccess{}, false, err
	}
	c := &completion{Host: h, parentLink: link}
	c.name, c.altName = nic.InterfaceName(link.Name, "host")
	var list []step.Step
	if there == nil {
		if err := cmp.Or(h.mayBeParent(link), c.nameIsFree()); err != nil {
			return nic.HostAccess{}, false, err
		}
		list = append(list, c.createStep())
	} else {
		c.link, c.name = there.Link, there.Name
	}
	list = append(list, c.steps(there, addrs)...)
	if len(list) == 0 {
		return h.describe(*there), false, nil
	}
	if err := h.maker.Run.Do(ctx, list); err != nil {
		return nic.HostAccess{}, false, err
	}
	now, err := h.on(link.Name)
	if err != nil || now == nil { // after a dry run there is none
		return nic.HostAccess{Parent: link.Name, Interface: c.name}, true, err
	}
	a := h.describe(*now)
	a.Added = c.added
	return a, true, nil
}

// mayBeParent returns an error for a device on which a macvlan would not work.
func (h *Host) mayBeParent(l *rtnl.Link) error {
	if l.Macvlan != nil || l.IPVlan != nil {
		return fmt.Errorf("%s is a %s itself: name the device that it sits on", l.Name, l.Kind)
	}
	if err := macvlan.CheckParent(nic.TypeMacvlan, l); err != nil {
		return err
	}
	if err := h.maker.MayBeParent(nic.TypeMacvlan, l); err != nil {
		return err
	}
	if wireless, err := macvlan.IsWireless(h.maker.NS, l.Name); err == nil && wireless {
		return fmt.Errorf(
			"%s is a Wi-Fi card: access points drop frames from other MACs than its own (use a bridge for host and guests, and route)",
			l.Name)
	}
	return nil
}

// completion makes a macvlan, or completes one that a killed vmnet has left unfinished.
type completion struct {
	*Host
	parentLink    *rtnl.Link
	name, altName string

	link  *rtnl.Link     // of the macvlan, once it is there
	made  bool           // by us
	added []netip.Prefix // by us
}

func (c *completion) nameIsFree() error {
	l, err := c.maker.NL.Link(c.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if m, ok := c.recognize(l); ok && m.parent == c.parentLink.Name {
		return errConcurrent
	} else if ok {
		return fmt.Errorf(
			"interface %s: %w, and is the host access of %s, which was called %s before (switch that off first)",
			c.name, fs.ErrExist, m.parent, c.parentLink.Name)
	}
	return fmt.Errorf("interface %s: %w, and is not vmnet's host access but a %s (rename or remove it)",
		c.name, fs.ErrExist, cmp.Or(l.Kind, "physical device"))
}

// createStep makes the macvlan. The request has its address, so that udev does not choose another.
func (c *completion) createStep() step.Step {
	parent := c.parentLink
	mac := macOf(parent.Name)
	return step.Step{
		Name: "macvlan",
		Text: fmt.Sprintf("RTM_NEWLINK %s: macvlan mode bridge on %s, MAC %s, MTU %d",
			c.name, parent.Name, mac, parent.MTU),
		Do: func(ctx context.Context) error {
			err := c.maker.Retry(ctx, parent, func() error {
				const modeBridge = 4 // MACVLAN_MODE_BRIDGE of include/uapi/linux/if_link.h
				err := c.maker.NL.Create(nic.TypeMacvlan, rtnl.Name(c.name), rtnl.Lower(parent.Index), rtnl.MAC(mac),
					rtnl.MTU(parent.MTU), rtnl.MacvlanMode(modeBridge))
				return c.explain(err)
			})
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s: %w: %w", c.name, err, errConcurrent)
			}
			if err != nil {
				return err
			}
			c.made = true
			c.link, err = c.maker.NL.Link(c.name)
			return err
		},
		Undo: func(context.Context) error { return c.remove() },
	}
}

func (c *completion) explain(err error) error {
	return macvlan.Explain(c.maker.NL, err, nic.TypeMacvlan, c.parentLink)
}

// remove removes what createStep made.
func (c *completion) remove() error {
	if !c.made {
		return nil
	}
	if c.link == nil { // it was made, and could not be read
		l, err := c.maker.NL.Link(c.name)
		if err != nil {
			return rtnl.IgnoreNotExist(err)
		}
		c.link = l
	}
	return rtnl.IgnoreNotExist(c.maker.NL.Delete(c.link.Index))
}

// steps complete a macvlan. there is nil if a step before makes it.
func (c *completion) steps(there *accessLink, addrs []netip.Prefix) (list []step.Step) {
	if there == nil || there.unnamed {
		list = append(list, c.aliasStep())
		if c.altName != "" && (there == nil || !slices.Contains(there.AltNames, c.altName)) {
			list = append(list, c.altNameStep())
		}
		list = append(list, c.noRouterStep())
	}
	for i, a := range addrs {
		if !slices.Contains(addrs[:i], a) && (there == nil || !slices.Contains(there.addresses, a)) {
			list = append(list, c.addressStep(a))
		}
	}
	if there == nil || !there.Up {
		list = append(list, c.upStep())
	}
	return list
}

func (c *completion) aliasStep() step.Step {
	text := aliasPrefix + alias.Escape(c.parentLink.Name)
	return step.Step{
		Name: "alias",
		Text: fmt.Sprintf("RTM_SETLINK %s: alias %q", c.name, text),
		Do: func(context.Context) error {
			return explainEPERM(c.maker.NL.Set(c.link.Index, rtnl.Alias(text)))
		},
	}
}

func (c *completion) altNameStep() step.Step {
	return step.Step{
		Name: "altname",
		Text: fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", c.name, c.altName),
		Do:   func(context.Context) error { return c.maker.NL.AddAltName(c.link.Index, c.altName) },
	}
}

// noRouterStep keeps the host from taking a second default route and more addresses from the IPv6
// routers that it hears on the parent device anyway. Without IPv6 there is nothing to do. Where
// /proc/sys is read-only, as in a container, the setting stays as the administrator has made it.
func (c *completion) noRouterStep() step.Step {
	path := "/proc/sys/net/ipv6/conf/" + c.name + "/accept_ra"
	return step.Step{
		Name: "no router",
		Text: fmt.Sprintf("write 0 to %s", path),
		Do: func(context.Context) error {
			err := c.maker.NS.Do(func() error { return os.WriteFile(path, []byte("0"), 0) })
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		},
	}
}

func (c *completion) addressStep(a netip.Prefix) step.Step {
	added := false
	return step.Step{
		Name: "address " + a.String(),
		Text: fmt.Sprintf("RTM_NEWADDR %s: %s", c.name, a),
		Do: func(context.Context) error {
			err := c.maker.NL.AddAddr(c.link.Index, a)
			if errors.Is(err, fs.ErrExist) {
				return nil // a link-local one, or another vmnet was quicker
			}
			if errors.Is(err, syscall.EACCES) && a.Addr().Is6() {
				return fmt.Errorf("%w (IPv6 is switched off: sysctl net.ipv6.conf.%s.disable_ipv6=0)",
					err, strings.ReplaceAll(c.name, ".", "/"))
			}
			if err != nil {
				return explainEPERM(err)
			}
			added, c.added = true, append(c.added, a)
			return nil
		},
		Undo: func(context.Context) error {
			if !added || c.made { // the addresses go with the device
				return nil
			}
			return rtnl.IgnoreNotExist(c.maker.NL.DeleteAddr(c.link.Index, a))
		},
	}
}

func (c *completion) upStep() step.Step {
	return step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", c.name),
		Do: func(context.Context) error {
			return c.explain(c.maker.NL.Set(c.link.Index, rtnl.Up(true)))
		},
		Undo: func(context.Context) error {
			if c.made || c.link == nil {
				return nil
			}
			return rtnl.IgnoreNotExist(c.maker.NL.Set(c.link.Index, rtnl.Up(false)))
		},
	}
}

// explainEPERM adds the cure if a privilege is missing.
func explainEPERM(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	}
	return err
}
