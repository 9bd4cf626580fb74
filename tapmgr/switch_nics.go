package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// A NIC by a socket has no link that could tell of it. Two others do: its port in the switch, with a label as a link's
// alias; and a label that QEMU holds beside the socket, which is there without the switch, too. It is in no netns, and
// belongs to the one for which it was attached, as a tap would.

// isSocket tells that there is no link.
func (o *ours) isSocket() bool { return o.want.Type == nic.TypeSocket }

// seatless tells that a NIC belongs on a switch that has lost it: that was ended, or has removed its port.
func (o *ours) seatless() bool {
	return o.want.Switch && o.seat.path != "" && o.seat.port == nil && o.seat.err == nil
}

// socketNICs are the NICs by sockets that labels tell of, those of the switches that were asked, or both.
func (m *Manager) socketNICs(op *opened, all []asked) []ours {
	var found []ours
	followLifelines(op, all)
	byLabel := map[[2]uint64]int{} // of the files' device and inode to found
	for _, l := range op.labels {
		if l.Type != nic.TypeSocket {
			continue
		}
		st, err := l.Stat()
		if err != nil {
			continue
		}
		id := [2]uint64{st.Dev, st.Ino}
		i, known := byLabel[id]
		if !known {
			i = len(found)
			byLabel[id] = i
			found = append(found, socketNIC(l.Record, l.uid))
		}
		found[i].vouched = found[i].vouched || isTrusted(l.uid)
		found[i].addHolders(op, []procfd.File{l.File})
	}
	for _, a := range all {
		for i, p := range a.ports {
			r, ok := nic.ParseRecord(p.Label)
			if !ok || r.Type != nic.TypeSocket || r.Netns != op.own || p.Holder == 0 || !a.mayHold(p.Holder) {
				continue
			}
			found = withPort(found, r, seat{path: a.path, port: &a.ports[i]}, a.trusted)
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
func followLifelines(op *opened, all []asked) {
	for _, a := range all {
		for i := range a.ports {
			p := &a.ports[i]
			if p.Lifeline == 0 {
				continue
			}
			r, _ := nic.ParseRecord(p.Label)
			pipe := fmt.Sprintf("pipe:[%d]", p.Lifeline)
			for _, l := range op.labels {
				if l.Type == nic.TypeSocket && l.VM == r.VM && l.NIC == r.NIC && (op.isVMM(l.PID) || !op.isVMM(p.Holder)) && holds(l.PID, pipe) {
					p.Holder = l.PID
				}
			}
		}
	}
}

// holds reports whether a process has a file open whose link in /proc reads so, among those that a VMM has from the start.
func holds(pid int, target string) (found bool) {
	procfd.First(pid, maxEarly, func(f procfd.File) { found = found || f.Target == target })
	return found
}

// sit notes where a NIC by a socket is. Only the port's label tells the phase.
func (o *ours) sit(s seat) {
	o.seat = s
	if s.port == nil {
		return
	}
	if r, ok := nic.ParseRecord(s.port.Label); ok {
		o.want.Phase, o.Alias = r.Phase, s.port.Label
	}
}

// withPort notes a switch's port at the NIC whose label its holder has, or adds the NIC that nothing else tells of.
func withPort(found []ours, r nic.Record, s seat, trusted bool) []ours {
	i := slices.IndexFunc(found, func(o ours) bool {
		return o.want.VM == r.VM && o.want.NIC == r.NIC && o.isHeldBy(s.port.Holder)
	})
	if i < 0 {
		i = len(found)
		found = append(found, socketNIC(r, ownerOf(s.port.Holder)))
		found[i].holders = []nic.Holder{{PID: s.port.Holder, FDs: []int{}}}
	}
	found[i].vouched = found[i].vouched || trusted
	found[i].sit(s)
	return found
}

// socketNIC is one that a process of that user holds.
func socketNIC(r nic.Record, uid int) ours {
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: nic.TypeSocket, Up: true, MTU: r.GuestMTU()}
	return ours{Link: link, want: r, allSeen: true, uid: uid}
}

// ownerOf is the user whose process it is, or nobody: see pidfd.Owner.
func ownerOf(pid int) int {
	uid, err := pidfd.Owner(pid)
	if err != nil {
		return nobodys
	}
	return uid
}

// nobodys is the user whose word is not believed to be anybody's.
const nobodys = -1

// sources are the switches that labels of root's and the caller's processes name. Another user's may name any
// socket.
func sources(labels []label) (names []string) {
	for _, l := range labels {
		if l.Type == nic.TypeSocket && isTrusted(l.uid) {
			names = append(names, l.Source)
		}
	}
	return names
}

// socketFor finds a NIC by a socket that a process holds, by its label, or as a port of the switch that is named, in which
// a crash may have left it alone; nil for none.
func (m *Manager) socketFor(ctx context.Context, pid int, op *opened, vm, nic, sw string) *ours {
	names := sources(op.labels)
	if sw != "" {
		names = append(names, sw)
	}
	if len(names) == 0 {
		return nil
	}
	all := m.askNamed(ctx, names...)
	for i := range all {
		if path, err := control.Path(sw); err == nil && path == all[i].path {
			all[i].trusted = true
		}
	}
	for _, o := range m.socketNICs(op, all) {
		if o.want.VM == vm && o.want.NIC == nic && o.isHeldBy(pid) {
			return &o
		}
	}
	return nil
}

// sameWithoutLink tells whether two readings are of one NIC that has no link.
func (o *ours) sameWithoutLink(now *ours) bool {
	same := !o.hasLink() && !now.hasLink() && o.want.VM == now.want.VM && o.want.NIC == now.want.NIC
	return same && slices.ContainsFunc(o.holders, func(h nic.Holder) bool { return now.isHeldBy(h.PID) })
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
	return rtnl.IgnoreNotExist(err)
}

// setAlias says of a NIC what it is, on its link or in its port.
func (m *Manager) setAlias(ctx context.Context, o *ours, alias string) error {
	switch {
	case o.gone:
		return nil
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
	return rtnl.IgnoreNotExist(err)
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
