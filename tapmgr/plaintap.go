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
	"vmnet/internal/qemu"
	"vmnet/internal/rtnl"
	"vmnet/internal/tun"
)

// plainAlias begins the alias of a tap of which only its bridge is known: a VMM asked for it in
// the way of qemu-bridge-helper, or made it itself and had it put on a bridge by a
// script. What NIC of the guest it is only the VMM knows. parseAlias takes it for no NIC.
const plainAlias = aliasPrefix + "plain "

// plainTap is such a tap as it is.
type plainTap struct {
	*rtnl.Link
	owner  int    // uid of the VMM's user
	source string // the bridge that it was put on
	port   string // settings of the bridge port
}

func (t plainTap) alias() string {
	text := fmt.Sprintf("%suid=%d source=%s", plainAlias, t.owner, escape(t.source))
	if t.port != "" {
		text += " port=" + escape(t.port)
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
			return t, false
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
		}
		if err != nil {
			return t, false
		}
	}
	return t, owner && bridge.ValidName(t.source)
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
	if err := m.putOn(br, tap.Name, port); err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, nil
}

// putOn makes a plain tap a port of a bridge, and says in its alias whose it is.
func (m *Manager) putOn(br *rtnl.Link, name string, port bridge.PortConfig) error {
	l, err := m.nl.Link(name)
	if err != nil {
		return err
	}
	t := plainTap{Link: l, owner: m.Owner, source: br.Name, port: port.String()}
	alias := t.alias()
	if len(alias) > maxAlias {
		return fmt.Errorf("the port's settings need %d bytes of the %d that an interface alias has: use fewer VLAN ranges", len(alias), maxAlias)
	}
	if err := setQuiet(m.nl, l.Index, rtnl.Alias(alias), rtnl.MAC(hostMAC(l.MAC)), rtnl.MTU(br.MTU)); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	if err := bridge.AddPortWith(m.nl, br, l, port); err != nil {
		// One that its VMM has made stays, as it was.
		return errors.Join(err, gone(m.nl.Set(l.Index, rtnl.Alias(l.Alias), rtnl.MAC(l.MAC), rtnl.MTU(l.MTU))))
	}
	return nil
}

// IfUp puts a tap that a VMM has made on a bridge and brings it up, as QEMU wants it of a script=.
// Unless the caller is root it must hold a queue of the tap: QEMU's script
// inherits it. That the tap is on that bridge already is success.
func (m *Manager) IfUp(name, bridgeName string, port bridge.PortConfig) error {
	l, err := m.ownTap(name)
	if err != nil {
		return err
	}
	br, err := bridge.Get(m.nl, bridgeName)
	if err != nil {
		return err
	}
	if _, ours := parseAlias(l.Alias); ours {
		return fmt.Errorf("%w: %s is a NIC that vmnet has attached", ErrExist, name)
	}
	return m.putOn(br, name, port)
}

// IfDown takes a tap that IfUp has put on a bridge off it and brings it down, as QEMU wants it of
// a downscript=. One that is gone is success.
func (m *Manager) IfDown(name string) error {
	l, err := m.ownTap(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ok := parsePlain(l.Alias); !ok {
		return fmt.Errorf("%s was not put on a bridge by qemu-ifup: it is left alone", name)
	}
	if err := bridge.RemovePort(m.nl, l); err != nil {
		return err
	}
	return gone(m.nl.Set(l.Index, rtnl.Up(false), rtnl.Alias("")))
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
		held = held || tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == l.Name && tun.InNetns(f, inode)
	})
	if !held {
		return nil, fmt.Errorf("interface %s: %w: its queue is not open here, so nothing shows that it is yours (QEMU passes it on to its script)", name, fs.ErrPermission)
	}
	return l, nil
}

// plainTaps lists those of the Manager's netns.
func (m *Manager) plainTaps() ([]plainTap, error) {
	links, err := m.nl.Links("tun", 0)
	if err != nil {
		return nil, err
	}
	var found []plainTap
	for _, l := range links {
		if t, ok := parsePlain(l.Alias); ok && l.Tun != nil {
			t.Link = l
			found = append(found, t)
		}
	}
	return found, nil
}

// plainNICs are the plain taps as rows of ListAll, with the guest's name where QEMU tells it.
func (m *Manager) plainNICs() ([]NIC, error) {
	taps, err := m.plainTaps()
	if err != nil || len(taps) == 0 {
		return nil, err
	}
	inode, err := m.ns.Inode()
	if err != nil {
		return nil, err
	}
	holder := map[string]int{}
	err = procfd.All(func(f procfd.File) {
		if !tun.LooksLikeQueue(f) {
			return
		}
		if name := tun.InterfaceOf(f); name != "" && tun.InNetns(f, inode) {
			holder[name] = f.PID
		}
	})
	var nics []NIC
	for _, t := range taps {
		nic := NIC{
			Interface: t.Name, Type: TypeTap, Source: t.source, Port: t.port, Queues: 1, Vhost: "",
			MTU: t.MTU, State: linkState(t.Link), PID: holder[t.Name], UID: t.owner,
		}
		if p, err := qemu.ByPID(nic.PID); err == nil {
			nic.VM = p.Name
		}
		nics = append(nics, nic)
	}
	return nics, err
}
