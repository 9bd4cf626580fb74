package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/switches"
	"vmnet/tapmgr/nic"
)

// A NIC by a socket has no link whose alias could describe it. Two labels do: that of its port in
// the switch, and one that QEMU holds beside the socket, which exists also without the switch. The
// NIC is in no netns, and belongs to the one for which it was attached, as a tap would.

// socketNICs lists the NICs by sockets that the labels of processes, or of ports in the replies of
// switches, describe.
func (h *Host) socketNICs(op *holders.Files, all []switches.Reply) []Device {
	var found []Device
	followLifelines(op, all)
	byLabel := map[[2]uint64]int{} // of the files' device and inode to found
	for _, l := range op.Labels {
		if !l.IsSocket() {
			continue
		}
		st, err := l.Stat()
		if err != nil {
			continue
		}
		id := [2]uint64{st.Dev, st.Ino}
		i, known := byLabel[id]
		if !known { // while a set renews the label, there are two
			i = slices.IndexFunc(found, func(dev Device) bool {
				return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && dev.IsHeldBy(l.PID)
			})
			if i < 0 {
				i = len(found)
				found = append(found, SocketNIC(l.Record, l.User))
			}
			byLabel[id] = i
		}
		found[i].vouched = found[i].vouched || holders.IsTrusted(l.User)
		found[i].addHolders(op, []procfd.File{l.File})
	}
	for _, a := range all {
		for i, p := range a.Ports {
			r, ok := nic.ParseRecord(p.Label)
			if !ok || !r.IsSocket() || r.Netns != op.Own || p.Holder == 0 || !a.MayHold(p.Holder) {
				continue
			}
			found = withPort(found, r, SwitchPort{Path: a.Path, Port: &a.Ports[i]}, a.Trusted)
		}
	}
	for i := range found {
		if dev := &found[i]; dev.SwitchPort.Port == nil {
			dev.setSwitchPort(switchPortOf(dev, all)) // of another user's only what was asked anyway: see sources
		}
	}
	return found
}

// followLifelines sets the holder of each port with a lifeline to the process that has the lifeline
// now: the process that the port was made for may have started QEMU and wait for it, or have passed
// its files on and exited. The new holder has the port's own label.
func followLifelines(op *holders.Files, all []switches.Reply) {
	for _, a := range all {
		for i := range a.Ports {
			p := &a.Ports[i]
			if p.Lifeline == 0 {
				continue
			}
			r, _ := nic.ParseRecord(p.Label)
			pipe := fmt.Sprintf("pipe:[%d]", p.Lifeline)
			for _, l := range op.Labels {
				if l.IsSocket() && l.VM == r.VM && l.NIC == r.NIC && (op.IsVMM(l.PID) ||
					!op.IsVMM(p.Holder)) && holds(l.PID, pipe) {
					p.Holder = l.PID
				}
			}
		}
	}
}

// holds reports whether a process has a file with that target of its link in /proc, among the files
// that a VMM has from its start.
func holds(pid int, target string) (found bool) {
	procfd.First(pid, holders.MaxEarly, func(f procfd.File) { found = found || f.Target == target })
	return found
}

// setSwitchPort sets the port of a NIC by a socket. The port's label is the later one: the label
// that QEMU holds stays as it was when the NIC was plugged.
func (dev *Device) setSwitchPort(s SwitchPort) {
	dev.SwitchPort = s
	if s.Port == nil {
		return
	}
	if r, ok := nic.ParseRecord(s.Port.Label); ok {
		dev.Want, dev.Alias = dev.Want.ChangedTo(r), s.Port.Label
	}
}

// withPort sets a switch's port of the NIC whose label its holder has, or adds a NIC that only the
// port describes.
func withPort(found []Device, r nic.Record, s SwitchPort, trusted bool) []Device {
	i := slices.IndexFunc(found, func(dev Device) bool {
		return dev.Want.VM == r.VM && dev.Want.NIC == r.NIC && dev.IsHeldBy(s.Port.Holder)
	})
	if i < 0 {
		i = len(found)
		found = append(found, SocketNIC(r, holders.OwnerOf(s.Port.Holder)))
		found[i].Holders = []nic.Holder{{PID: s.Port.Holder, FDs: []int{}}}
	}
	found[i].vouched = found[i].vouched || trusted
	found[i].setSwitchPort(s)
	return found
}

// SocketNIC returns a NIC by a socket that a process of that user holds.
func SocketNIC(r nic.Record, uid int) Device {
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: r.Type, Up: true, MTU: r.GuestMTU()}
	return Device{Link: link, Want: r, allSeen: true, UID: uid}
}

// sources returns the switches named in labels of processes of root or the caller. Another
// user's label may name any socket.
func sources(labels []holders.Label) (names []string) {
	for _, l := range labels {
		if l.IsSocket() && holders.IsTrusted(l.User) {
			names = append(names, l.Source)
		}
	}
	return names
}

// socketFor finds a NIC by a socket that a process holds, by its label, or as a port of switch sw,
// which is all that a crash may have left; nil if there is none.
func (h *Host) socketFor(ctx context.Context, pid int, op *holders.Files, vm, nic, sw string) *Device {
	names := sources(op.Labels)
	if sw != "" {
		names = append(names, sw)
	}
	if len(names) == 0 {
		return nil
	}
	all := h.askNamed(ctx, names...)
	for i := range all {
		if path, err := control.Path(sw); err == nil && path == all[i].Path {
			all[i].Trusted = true
		}
	}
	for _, dev := range h.socketNICs(op, all) {
		if dev.Want.VM == vm && dev.Want.NIC == nic && dev.IsHeldBy(pid) {
			return &dev
		}
	}
	return nil
}

// SwitchPortText says which port to remove from which switch, for a step's text.
func (dev *Device) SwitchPortText() string {
	if dev.SwitchPort.Port == nil {
		return fmt.Sprintf("switch %s, if it is there", dev.Want.Source)
	}
	return fmt.Sprintf("switch %s: remove-port %s", dev.Want.Source, dev.SwitchPort.Port.Name)
}

// Labels returns the texts of a process's labels of a NIC.
func (h *Host) Labels(pid int, vm, nicID string) (texts []string, err error) {
	op, err := h.openedBy(pid)
	if err != nil {
		return nil, err
	}
	for _, l := range op.Labels {
		if l.VM == vm && l.NIC == nicID {
			texts = append(texts, l.Text)
		}
	}
	return texts, nil
}

// EndLabels ends a process's labels of a NIC, except one with the text valid. A label that the
// process was started with stays open, and would describe the NIC as it was: as deleted, once
// another NIC of the process has lost its device.
func (h *Host) EndLabels(pid int, vm, nicID, valid string) error {
	op, err := h.openedBy(pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range op.Labels {
		if l.VM == vm && l.NIC == nicID && l.Text != valid {
			errs = append(errs, rtnl.IgnoreNotExist(l.EndLabel()))
		}
	}
	return errors.Join(errs...)
}

// ErrNoSwitch is returned for a NIC by a socket whose switch has ended, or has lost it.
var ErrNoSwitch = fmt.Errorf("its switch has no such port any more: %w", fs.ErrNotExist)

// askSwitches asks the switches that run, and those of these names, for their ports.
func (h *Host) askSwitches(ctx context.Context, names ...string) []switches.Reply {
	if h.Switches == nil {
		return nil
	}
	running, ok, err := h.Switches()
	if !ok {
		return nil
	}
	if err != nil {
		h.notice("the switches were not asked: %v", err)
	}
	return h.asker.Ask(ctx, h.notice, running, names...)
}

// askNamed asks these switches and no others.
func (h *Host) askNamed(ctx context.Context, names ...string) []switches.Reply {
	return h.asker.Ask(ctx, h.notice, nil, names...)
}

// SwitchPort is the port that a switch has, or should have, for a NIC.
type SwitchPort struct {
	Path string        // of the switch's control socket; empty if that is not known
	Port *control.Port // nil where it has none
	Err  error         // why it could not be asked
}

// ErrNotAsked is why the port of a NIC is unknown if its switch was not asked.
var ErrNotAsked = errors.New("its switch was not asked")

// switchPortOf finds the port of a NIC that belongs on a switch among the replies. The switch that
// the NIC's record names is trusted regardless of its user: the user who attached the NIC chose it.
// Of two guests of one name each has the port that it holds. A port keeps its name when its tap is
// renamed.
func switchPortOf(dev *Device, all []switches.Reply) SwitchPort {
	return switchPortGiven(now(), dev, all)
}

func switchPortGiven(m moment, dev *Device, all []switches.Reply) SwitchPort {
	path, err := control.Path(dev.Want.Source)
	s := SwitchPort{Path: path, Err: cmp.Or(err, ErrNotAsked)}
	for _, a := range all {
		if a.Path != path {
			continue
		}
		s.Err = a.Err
		for i, p := range a.Ports {
			l, ok := nic.ParseRecord(p.Label)
			if ok && l.VM == dev.Want.VM && l.NIC == dev.Want.NIC && dev.mayHave(m, p) &&
				(s.Port == nil || p.Name == dev.Name) {
				s.Port = &a.Ports[i]
			}
		}
	}
	return s
}

// mayHave reports whether a port with the NIC's label may be its own, and not that of another guest
// of that name.
func (dev *Device) mayHave(m moment, p control.Port) bool {
	pid := dev.vmmPID(m)
	return pid == p.Holder || pid == 0 && !dev.IsUntrusted()
}

// ReadSwitchPort asks the switch that the NIC's record names for its port.
func (h *Host) ReadSwitchPort(ctx context.Context, dev *Device) SwitchPort {
	return switchPortOf(dev, h.askNamed(ctx, dev.Want.Source))
}

// Claimed reports whether a userspace switch takes all frames of a device, or of the device of
// which it is a VLAN. It is false if the caller lacks the privilege to see that.
func (h *Host) Claimed(l *rtnl.Link) (bool, error) {
	for range maxParents {
		claimed, err := endpoint.Claimed(h.NS, l.Name)
		if errors.Is(err, fs.ErrPermission) {
			return false, nil
		}
		if claimed || err != nil || l.Kind != "vlan" || l.LowerNS >= 0 {
			return claimed, err
		}
		if l, err = h.NL.LinkByIndex(l.Lower); err != nil {
			return false, rtnl.IgnoreNotExist(err)
		}
	}
	return false, nil
}
