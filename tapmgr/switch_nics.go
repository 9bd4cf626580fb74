package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/fdlabel"
	"vmnet/internal/procfd"
	"vmnet/internal/rtnl"
)

// A NIC by a socket has no link that could tell of it. Two others do: its port in the switch, with a label as a link's
// alias; and a label that QEMU holds beside the socket, which is there without the switch, too. It is in no netns, and
// belongs to the one for which it was attached, as a tap would.

// isSocket tells that there is no link.
func (o *ours) isSocket() bool { return o.want.Type == TypeSocket }

// seatless tells that a NIC belongs on a switch that has lost it: that was ended, or has removed its port.
func (o *ours) seatless() bool {
	return o.want.Switch && o.seat.path != "" && o.seat.port == nil && o.seat.err == nil
}

// socketNICs are the NICs by sockets that labels tell of, those of the switches that were asked, or both.
func (m *Manager) socketNICs(labels []procfd.File, all []asked) []ours {
	var found []ours
	own, err := m.ns.Inode()
	if err != nil {
		return nil
	}
	followLifelines(labels, all)
	byLabel := map[[2]uint64]int{} // of the files' device and inode to found
	for _, f := range labels {
		text, _ := fdlabel.Of(f)
		r, ok := parseAlias(text)
		id, there := fileID(f)
		if !ok || r.Type != TypeSocket || r.Netns != own || !there {
			continue
		}
		i, known := byLabel[id]
		if !known {
			i = len(found)
			byLabel[id] = i
			found = append(found, socketNIC(r))
		}
		found[i].addHolder(f)
	}
	for _, a := range all {
		for i, p := range a.ports {
			r, ok := parseAlias(p.Label)
			if !ok || r.Type != TypeSocket || r.Netns != own || p.Holder == 0 || !a.mayHold(p.Holder) {
				continue
			}
			found = withPort(found, r, seat{path: a.path, port: &a.ports[i]})
		}
	}
	for i := range found {
		if o := &found[i]; o.seat.port == nil {
			o.sit(seatOf(o, all)) // of another user's only what was asked anyway: see sources
		}
	}
	return found
}

// followLifelines names, of each port with a lifeline, the process that has it now: the one that the port was made for may have
// started QEMU and waits for it, or have passed its files on and ended. That is a process with the port's own label.
func followLifelines(labels []procfd.File, all []asked) {
	for _, a := range all {
		for i := range a.ports {
			p := &a.ports[i]
			if p.Lifeline == 0 {
				continue
			}
			r, _ := parseAlias(p.Label)
			pipe := fmt.Sprintf("pipe:[%d]", p.Lifeline)
			for _, f := range labels {
				text, _ := fdlabel.Of(f)
				l, ok := parseAlias(text)
				if ok && l.VM == r.VM && l.NIC == r.NIC && (isQEMU(f.PID) || !isQEMU(p.Holder)) && holds(f.PID, pipe) {
					p.Holder = f.PID
				}
			}
		}
	}
}

// holds reports whether a process has a file open whose link in /proc reads so.
func holds(pid int, target string) (found bool) {
	procfd.Of(pid, func(f procfd.File) { found = found || f.Target == target })
	return found
}

// sit notes where a NIC by a socket is. Only the port's label tells the phase.
func (o *ours) sit(s seat) {
	o.seat = s
	if s.port == nil {
		return
	}
	if r, ok := parseAlias(s.port.Label); ok {
		o.want.Phase, o.Alias = r.Phase, s.port.Label
	}
}

// withPort notes a switch's port at the NIC whose label its holder has, or adds the NIC that nothing else tells of.
func withPort(found []ours, r record, s seat) []ours {
	i := slices.IndexFunc(found, func(o ours) bool {
		return o.want.VM == r.VM && o.want.NIC == r.NIC && o.isHeldBy(s.port.Holder)
	})
	if i < 0 {
		i = len(found)
		found = append(found, socketNIC(r))
		found[i].holders = []Holder{{PID: s.port.Holder, FDs: []int{}}}
	}
	found[i].sit(s)
	return found
}

func socketNIC(r record) ours {
	name, _ := InterfaceName(r.VM, r.NIC)
	return ours{Link: &rtnl.Link{Name: name, Kind: TypeSocket, Up: true, MTU: r.guestMTU()}, want: r, allSeen: true}
}

// fileID tells one open file from another, whoever has it open.
func fileID(f procfd.File) (id [2]uint64, ok bool) {
	info, err := os.Stat(f.Path())
	if err != nil {
		return id, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return id, false
	}
	return [2]uint64{st.Dev, st.Ino}, true
}

// labelsOf lists the labels that a process holds.
func labelsOf(pid int) (labels []procfd.File) {
	procfd.Of(pid, func(f procfd.File) {
		if _, ok := fdlabel.Of(f); ok {
			labels = append(labels, f)
		}
	})
	return labels
}

// sources are the switches that labels of root's and the caller's processes name, for the Manager's netns. Another user's may
// name any socket.
func (m *Manager) sources(labels []procfd.File) (names []string) {
	own, err := m.ns.Inode()
	if err != nil {
		return nil
	}
	for _, f := range labels {
		text, _ := fdlabel.Of(f)
		uid, err := procfd.RealUID(f.PID)
		if r, ok := parseAlias(text); ok && r.Type == TypeSocket && r.Netns == own && err == nil && (uid == 0 || uid == os.Geteuid()) {
			names = append(names, r.Source)
		}
	}
	return names
}

// socketFor finds a NIC by a socket that a process holds, by its label, or as a port of the switch that is named, in which
// a crash may have left it alone; nil for none.
func (m *Manager) socketFor(pid int, vm, nic, sw string) *ours {
	labels := labelsOf(pid)
	names := m.sources(labels)
	if sw != "" {
		names = append(names, sw)
	}
	if len(names) == 0 {
		return nil
	}
	all := m.askNamed(names...)
	for i := range all {
		if path, err := control.Path(sw); err == nil && path == all[i].path {
			all[i].trusted = true
		}
	}
	for _, o := range m.socketNICs(labels, all) {
		if o.want.VM == vm && o.want.NIC == nic && o.isHeldBy(pid) {
			return &o
		}
	}
	return nil
}

// sameSocket tells whether two readings are of one NIC by a socket.
func (o *ours) sameSocket(now *ours) bool {
	same := o.isSocket() && now.isSocket() && o.want.VM == now.want.VM && o.want.NIC == now.want.NIC
	return same && slices.ContainsFunc(o.holders, func(h Holder) bool { return now.isHeldBy(h.PID) })
}

// leave removes a NIC's port from its switch. A switch, or port, that is not there any more is success.
func (m *Manager) leave(ctx context.Context, o *ours) error {
	if o.seat.err != nil {
		return o.seat.err
	}
	if o.seat.port == nil {
		return nil
	}
	return removePort(ctx, o.seat.path, o.seat.port.Name)
}

func removePort(ctx context.Context, sw, port string) error {
	err := withSwitch(ctx, sw, func(ctx context.Context, c *control.Client) error { return c.RemovePort(ctx, port) })
	if errors.Is(err, control.ErrNotRunning) {
		return nil
	}
	return gone(err)
}

// setAlias says of a NIC what it is, on its link or in its port.
func (m *Manager) setAlias(ctx context.Context, o *ours, alias string) error {
	switch {
	case !o.isSocket():
		return m.set(o, rtnl.Alias(alias))
	case o.seat.err != nil:
		return o.seat.err
	case o.seat.port == nil: // without a switch nobody could be told
		return nil
	}
	err := withSwitch(ctx, o.seat.path, func(ctx context.Context, c *control.Client) error {
		return c.SetLabel(ctx, o.seat.port.Name, alias)
	})
	if errors.Is(err, control.ErrNotRunning) { // it has ended meanwhile
		return nil
	}
	return gone(err)
}

// seatText is where a port is, for a step's text.
func (o *ours) seatText() string {
	if o.seat.port == nil {
		return fmt.Sprintf("switch %s, if it is there", o.want.Source)
	}
	return fmt.Sprintf("switch %s: remove-port %s", o.want.Source, o.seat.port.Name)
}

// cureOfLost is what helps a NIC by a socket whose switch has ended.
const cureOfLost = "the same vmnet attach again replaces it"

// runs tells by an error that a switch does not run, or does not answer.
func (m *Manager) runs(name string) error {
	return withSwitch(context.Background(), name, func(ctx context.Context, c *control.Client) error {
		_, err := c.Info(ctx)
		return err
	})
}

// errNoSwitch is a NIC by a socket whose switch has ended, or has lost it.
var errNoSwitch = fmt.Errorf("its switch has no such port any more: %w", fs.ErrNotExist)
