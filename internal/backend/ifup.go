package backend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// IfUp puts a tap that a VMM has made on a bridge and sets it up, as QEMU expects of a script=.
// Unless the caller is root it must hold a queue of the tap: QEMU's script inherits it. It is
// success if the tap is on that bridge already. allowed is called once the tap counts as the
// owner's, before and after it is put there. On an error the tap is as it was.
func (m *Maker) IfUp(name, bridgeName string, port brport.Settings, allowed func() error) error {
	l, err := m.ownTap(name)
	if err != nil {
		return err
	}
	br, err := bridges.Get(m.NL, bridgeName)
	if err != nil {
		return err
	}
	t, err := m.asPlain(l)
	if err != nil {
		return err
	}
	t.Source, t.Port = br.Name, port.String()
	return t.PutOn(m.NL, br, port, allowed)
}

// asPlain returns what is known of a tap, and whose it will be. A tap that a helper has made for a
// user stays that user's, even if another process has got its queue.
func (m *Maker) asPlain(l *rtnl.Link) (plaintap.Tap, error) {
	t, known := plaintap.Parse(l.Alias)
	t.Link = l
	switch {
	case known && m.Owner != 0 && (t.Elsewhere || t.Owner == 0):
		t.Owner = m.Owner
	case known:
	case strings.HasPrefix(l.Alias, alias.Prefix):
		return t, fmt.Errorf("%w: %s is a NIC that vmnet has attached", nic.ErrExist, l.Name)
	default:
		t.Owner, t.Elsewhere = m.Owner, true
	}
	return t, nil
}

// IfDown takes a tap off the bridge that IfUp has put it on, and sets it down, as QEMU expects of a
// downscript=. It is success if the tap is gone. A tap that is on another bridge now is left alone,
// with an error. The alias of a tap that plaintap.Make has made stays: the tap counts as long as it
// is there, and IfUp puts it on a bridge again.
func (m *Maker) IfDown(name string) error {
	l, err := m.ownTap(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t, ok := plaintap.Parse(l.Alias)
	t.Link = l
	if !ok || t.Source == "" {
		return fmt.Errorf("qemu-ifup did not put %s on a bridge: it is left alone", name)
	}
	return m.TakeOff(t)
}

// TakeOff takes a plain tap off the bridge that its alias names and sets it down, by one request.
func (m *Maker) TakeOff(t plaintap.Tap) error {
	if master := m.MasterName(t.Link); master != "" && master != t.Source {
		return fmt.Errorf("%s is a port of %s now, not of %s: it is left alone", t.Name, master, t.Source)
	}
	t.Source, t.Port = "", ""
	text := t.Alias()
	if t.Elsewhere {
		text = ""
	}
	if err := rtnl.IgnoreNotExist(m.NL.Set(t.Index, rtnl.Alias(text), rtnl.Master(0), rtnl.Up(false))); err != nil {
		return fmt.Errorf("take %s off its bridge: %w", t.Name, err)
	}
	return nil
}

// ownTap reads the link of a tap that the caller may change.
func (m *Maker) ownTap(name string) (*rtnl.Link, error) {
	if !brport.ValidName(name) {
		return nil,
			step.WithStage(nic.ErrInvalid,
				fmt.Errorf("interface name %q: want 1 to 15 bytes without white space, '/', ':' or '%%'", name))
	}
	l, err := m.NL.Link(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if l.Tun == nil || !l.Tun.Tap {
		return nil, fmt.Errorf("interface %s is not a tap", name)
	}
	if m.Owner == 0 {
		return l, nil
	}
	inode, err := m.NS.Inode()
	if err != nil {
		return nil, err
	}
	held := false
	procfd.Of(os.Getpid(), func(f procfd.File) {
		held = held || tun.OwnQueueOf(f.FD, l.Name, inode)
	})
	if !held {
		return nil,
			fmt.Errorf(
				"interface %s: %w: its queue is not open here, so nothing shows that it is yours (QEMU passes it to its script)",
				name, fs.ErrPermission)
	}
	return l, nil
}
