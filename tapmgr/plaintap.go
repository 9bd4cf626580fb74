package tapmgr

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"vmnet/bridge"
	"vmnet/internal/procfd"
	"vmnet/internal/rtnl"
	"vmnet/internal/tun"
)

// plainAlias begins the alias of a tap of which only its bridge is known: a VMM asked for it in
// the way of qemu-bridge-helper, or made it itself and had it put on a bridge by a
// script. What NIC of the guest it is only the VMM knows. parseAlias takes it for no NIC.
//
// As long as a tap has such an alias it counts as its owner's. A tap that PlainTap has made has
// one for all of its life: who holds its queue may keep it (TUNSETPERSIST asks for no right).
// One that was there without us is given back without an alias. TUNSETOWNER asks for
// no right either, so the tap's owner is no proof that it is the user's own; that it came
// without our alias, which a user cannot take away, is.
const plainAlias = aliasPrefix + "plain "

// plainTap is such a tap as it is.
type plainTap struct {
	*rtnl.Link
	owner     int    // uid of the VMM's user
	source    string // the bridge that it was put on; empty where IfDown has taken it off
	port      string // settings of the bridge port
	elsewhere bool   // it was there before IfUp, and is not ours to delete
}

func (t plainTap) alias() string {
	text := fmt.Sprintf("%suid=%d", plainAlias, t.owner)
	if t.source != "" {
		text += " source=" + escape(t.source)
	}
	if t.port != "" {
		text += " port=" + escape(t.port)
	}
	if t.elsewhere {
		text += " made=elsewhere"
	}
	return text
}

// parsePlain reads such an alias. ok is false for any other.
func parsePlain(alias string) (t plainTap, ok bool) {
	rest, ok := strings.CutPrefix(alias, plainAlias)
	if !ok || len(alias) > maxAlias {
		return t, false
	}
	owner := false
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := parseField(field)
		if err != nil {
			return plainTap{}, false
		}
		switch key {
		case "uid":
			t.owner, err = strconv.Atoi(value)
			owner = err == nil
		case "source":
			t.source = value
		case "port":
			t.port = value
			_, err = bridge.ParsePortConfig(value)
		case "made":
			t.elsewhere = value == "elsewhere"
		}
		if err != nil {
			return plainTap{}, false
		}
	}
	if !owner || t.source != "" && !bridge.ValidName(t.source) {
		return plainTap{}, false
	}
	return t, true
}

// PlainTap makes a tap on a bridge for a VMM of which no more is known, as qemu-bridge-helper
// does: the kernel names it, it has one queue, and a vnet header only if the VMM can take
// one. The tap lives as long as somebody holds its queue. Close it.
func (m *Manager) PlainTap(bridgeName string, port bridge.PortConfig, vnetHdr bool) (*tun.Tap, error) {
	br, err := bridge.Get(m.nl, bridgeName)
	if err != nil {
		return nil, err
	}
	tap, err := tun.CreateNumbered(m.ns, vnetHdr)
	if err != nil {
		return nil, err
	}
	l, err := m.nl.Link(tap.Name)
	if err == nil {
		t := plainTap{Link: l, owner: m.Owner, source: br.Name, port: port.String()}
		err = m.putOn(br, t, port, func() error { return nil })
	}
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, nil
}

// putOn makes a plain tap a port of a bridge, and says in its alias whose it is, by which it
// counts. What is refused changes nothing for long: allowed is asked before a frame can pass, and
// again in the end, since the tap may have been taken off and others put on meanwhile.
func (m *Manager) putOn(br *rtnl.Link, t plainTap, port bridge.PortConfig, allowed func() error) error {
	alias := t.alias()
	if len(alias) > maxAlias {
		return fmt.Errorf("the port's settings need %d bytes of the %d that an interface alias has: use fewer VLAN ranges", len(alias), maxAlias)
	}
	if err := bridge.CheckPort(m.nl, br, t.Link, port); err != nil {
		return err
	}
	var former bridge.PortConfig
	var err error
	if t.Master != 0 {
		if former, err = bridge.ReadPort(m.nl, br, t.Link); err != nil {
			return err
		}
	}
	if err = setQuiet(m.nl, t.Index, rtnl.Alias(alias), rtnl.MAC(hostMAC(t.MAC)), rtnl.MTU(br.MTU)); err != nil {
		err = fmt.Errorf("set up %s: %w", t.Name, err)
	}
	if err == nil {
		err = allowed()
	}
	if err == nil {
		// Whoever clears the alias takes the tap off the bridge by the same request, so that
		// there is none on a bridge that does not count.
		err = bridge.AddPortWith(m.nl, br, t.Link, port, rtnl.Alias(alias))
	}
	if err == nil {
		err = allowed()
	}
	if err != nil {
		return errors.Join(err, gone(m.undoPutOn(br, t.Link, former)))
	}
	return nil
}

// undoPutOn makes a tap what it was before. It leaves the bridge first: as a port its MTU
// would become the bridge's.
func (m *Manager) undoPutOn(br, was *rtnl.Link, former bridge.PortConfig) error {
	if err := m.nl.Set(was.Index, rtnl.Alias(was.Alias), rtnl.Master(was.Master), rtnl.Up(was.Up)); err != nil {
		return err
	}
	if was.Master != 0 && former.Other == "" {
		if err := bridge.SetPort(m.nl, br, was, former); err != nil {
			return err
		}
	}
	return m.nl.Set(was.Index, rtnl.MAC(was.MAC), rtnl.MTU(was.MTU))
}

// IfUp puts a tap that a VMM has made on a bridge and brings it up, as QEMU wants it of a script=.
// Unless the caller is root it must hold a queue of the tap: QEMU's script
// inherits it. That the tap is on that bridge already is success. allowed is asked once
// the tap counts as the owner's, before and after it is put there.
// Where that fails the tap is as it was.
func (m *Manager) IfUp(name, bridgeName string, port bridge.PortConfig, allowed func() error) error {
	l, err := m.ownTap(name)
	if err != nil {
		return err
	}
	br, err := bridge.Get(m.nl, bridgeName)
	if err != nil {
		return err
	}
	t, err := m.asPlain(l)
	if err != nil {
		return err
	}
	t.source, t.port = br.Name, port.String()
	return m.putOn(br, t, port, allowed)
}

// asPlain tells what is known of a tap, and whose it will be. One that a helper has made stays
// that user's, whoever was passed its queue.
func (m *Manager) asPlain(l *rtnl.Link) (plainTap, error) {
	t, known := parsePlain(l.Alias)
	t.Link = l
	switch {
	case known && m.Owner != 0 && (t.elsewhere || t.owner == 0):
		t.owner = m.Owner
	case known:
	case strings.HasPrefix(l.Alias, aliasPrefix):
		return t, fmt.Errorf("%w: %s is a NIC that vmnet has attached", ErrExist, l.Name)
	default:
		t.owner, t.elsewhere = m.Owner, true
	}
	return t, nil
}

// IfDown takes a tap that IfUp has put on a bridge off it and brings it down, as QEMU wants it of
// a downscript=. One that is gone is success; one that is on another bridge by now is
// left alone, with an error. The alias of one that PlainTap has made stays: it counts
// as long as it is there, and IfUp puts it on a bridge again.
func (m *Manager) IfDown(name string) error {
	l, err := m.ownTap(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t, ok := parsePlain(l.Alias)
	t.Link = l
	if !ok || t.source == "" {
		return fmt.Errorf("%s was not put on a bridge by qemu-ifup: it is left alone", name)
	}
	return m.takeOff(t)
}

// takeOff takes a plain tap off the bridge that its alias names, all by one request.
func (m *Manager) takeOff(t plainTap) error {
	if master := m.masterName(t.Link); master != "" && master != t.source {
		return fmt.Errorf("%s is a port of %s now, not of %s: it is left alone", t.Name, master, t.source)
	}
	t.source, t.port = "", ""
	alias := t.alias()
	if t.elsewhere {
		alias = ""
	}
	if err := gone(m.nl.Set(t.Index, rtnl.Alias(alias), rtnl.Master(0), rtnl.Up(false))); err != nil {
		return fmt.Errorf("take %s off its bridge: %w", t.Name, err)
	}
	return nil
}

// ownTap reads a tap that the caller may change.
func (m *Manager) ownTap(name string) (*rtnl.Link, error) {
	if !bridge.ValidName(name) {
		return nil, in(ErrInvalid, fmt.Errorf("interface name %q: want 1 to 15 bytes without blanks, '/', ':' or '%%'", name))
	}
	l, err := m.nl.Link(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if l.Tun == nil || !l.Tun.Tap {
		return nil, fmt.Errorf("interface %s is no tap", name)
	}
	if m.Owner == 0 {
		return l, nil
	}
	inode, err := m.ns.Inode()
	if err != nil {
		return nil, err
	}
	held := false
	procfd.Of(os.Getpid(), func(f procfd.File) {
		held = held || tun.OwnQueueOf(f.FD, l.Name, inode)
	})
	if !held {
		return nil, fmt.Errorf("interface %s: %w: its queue is not open here, so nothing shows that it is yours (QEMU passes it on to its script)", name, fs.ErrPermission)
	}
	return l, nil
}
