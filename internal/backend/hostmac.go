package backend

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// A process that has a queue of a tap open can give the tap any address: SIOCSIFHWADDR on that fd
// needs no privilege (__tun_chr_ioctl in drivers/net/tun.c). If that is the address of another
// guest, the tap's bridge keeps that guest's frames, as frames for a port's own address
// (br_handle_frame_finish), even if the ports are isolated.

// HostAddress returns the address that a managed tap on a bridge should have on the host's side, as
// its alias says. ok is false for other links, for a tap on no bridge, and while one is being
// attached.
func HostAddress(l *rtnl.Link) (mac net.HardwareAddr, ok bool) {
	if l.Tun == nil || len(l.MAC) != 6 || l.Master == 0 {
		return nil, false
	}
	if t, plain := plaintap.Parse(l.Alias); plain {
		return stablemac.HostMAC(l.MAC), t.Source != ""
	}
	r, ok := nic.ParseRecord(l.Alias)
	if !ok || r.Type != nic.TypeTap && r.Type != nic.TypeOVS || r.Phase == nic.PhaseAttaching {
		return nil, false
	}
	return stablemac.HostMAC(r.MAC), true
}

// SetBackAddress gives the tap of that interface index the address of HostAddress. The action's
// Changed is false if the tap has that already, or if there is no such tap (any more).
func (m *Maker) SetBackAddress(index int) (nic.Action, error) {
	l, err := m.NL.LinkByIndex(index)
	if errors.Is(err, fs.ErrNotExist) {
		return nic.Action{}, nil
	}
	if err != nil {
		return nic.Action{}, err
	}
	want, ok := HostAddress(l)
	if !ok || bytes.Equal(want, l.MAC) {
		return nic.Action{}, nil
	}
	r, _ := nic.ParseRecord(l.Alias)
	a := nic.Action{
		VM: r.VM, NIC: r.NIC, Interface: l.Name,
		Action:  fmt.Sprintf("address set back to %s: a process that holds it had made it %s", want, l.MAC),
		Changed: true,
	}
	return a, rtnl.IgnoreNotExist(m.NL.Set(index, rtnl.MAC(want)))
}
