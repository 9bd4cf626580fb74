package network

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
)

// checkUplink compares a network's uplink with its file.
func (m *Manager) checkUplink(n *config.Network, st *state) (found []Difference, err error) {
	r := st.record
	apply := "vmnet network apply " + n.Name
	add := func(want, is, mend string) { found = append(found, Difference{n.Name, "uplink", want, is, mend}) }
	if r.pending() {
		if !m.awaited(n.Name, r) {
			add("a move that somebody confirms", "one without, and no process that takes it back",
				fmt.Sprintf("vmnet network confirm %s, or %s, which takes it back", n.Name, apply))
		}
		return found, nil
	}
	switch {
	case n.Uplink == nil && r.uplink == "":
		return nil, nil
	case n.Uplink == nil:
		add("", r.uplink, apply)
		return found, nil
	case n.Uplink.Move == config.Unconfirmed && !r.moved:
		add(n.Uplink.Device, "none, since nobody has confirmed the move", fmt.Sprintf(
			"%s --confirm 60s, or vmnet network delete %s", apply, n.Name))
		return found, nil
	case n.Uplink.Move == config.Unconfirmed:
		add("a confirmed move", "one that "+m.Dir.Path(n.Name)+" calls unconfirmed", "vmnet network confirm "+n.Name)
	}
	if n.Uplink.VXLAN != nil {
		return m.checkSegment(n, st)
	}
	u, err := uplink.Find(m.nl, n.Name, n.Uplink.Device)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		add(n.Uplink.Device, "", apply+" once the interface is there")
		return found, nil
	case errors.Is(err, uplink.ErrTaken):
		add(n.Uplink.Device, err.Error(), apply)
		return found, nil
	case err != nil:
		return nil, err
	}
	return found, m.checkPort(n, u, st, func(want, is string) { add(want, is, apply) })
}

// checkPort compares the port of an uplink with what it should be.
func (m *Manager) checkPort(n *config.Network, u *uplink.Uplink, st *state, add func(want, is string)) error {
	l := u.Port
	switch {
	case st.bridge == nil:
		return nil // check says so already
	case l == nil:
		add("VLAN "+u.Name, "")
		return nil
	case l.Master != st.bridge.Index:
		add(l.Name+" on bridge "+n.Name, "on another or none")
		return nil
	case !l.Up:
		add(l.Name+" up", "down")
	}
	move := n.Uplink.Move != config.NoMove
	if move != st.record.moved {
		add(fmt.Sprintf("move-address: %v", move), fmt.Sprint(st.record.moved))
		return nil
	}
	h, err := m.nl.HostConfig(l)
	if err != nil {
		return err
	}
	if has := h.Addresses(); len(has) > 0 {
		add("no addresses on "+l.Name+", a port of a bridge", fmt.Sprint(has))
		return nil
	}
	if !move {
		return nil
	}
	needed, err := uplink.Needed(m.nl, st.bridge, l)
	if needed {
		add(fmt.Sprintf("the address %s of %s on the bridge", l.MAC, l.Name), st.bridge.MAC.String())
	}
	return err
}

// MoveNotices says so if a move waits to be confirmed.
func (m *Manager) MoveNotices(n *config.Network) []string {
	_, r, err := m.bridge(n.Name)
	if err != nil || !r.pending() {
		return nil
	}
	now, err := uplink.Now()
	if err != nil || now >= r.deadline {
		return nil
	}
	return []string{fmt.Sprintf("network %s: the move of the addresses of %s is taken back in %v, unless "+
		"vmnet network confirm %[1]s comes", n.Name, r.uplink, (r.deadline - now).Round(time.Second))}
}
