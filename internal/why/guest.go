package why

import (
	"fmt"
	"net"
	"strings"

	"vmnet/bridge/portsec"
	"vmnet/tapmgr/nic"
)

// leaveGuest follows the frame from the guest's driver to the VMM's netdev.
func (w *walker) leaveGuest() { w.guest(w.NIC) }

// guest reports whether a guest's driver and VMM exchange frames with its host interface.
func (w *walker) guest(n *NIC) {
	where := "guest " + n.Title()
	if w.unfinished(where, n); w.stopped {
		return
	}
	if n.Process.Seen && n.Process.Halted {
		w.stop(where, fmt.Sprintf("kill -CONT %d", n.PID), "process %d of its VMM is stopped by a signal", n.PID)
		return
	}
	g := n.Guest
	if g == nil {
		w.unknown(where, "vmnet show "+n.VM+", as root", "its VMM was not asked%s", notAsked(n.Notices))
		return
	}
	off := func(b *bool) bool { return b != nil && !*b }
	w.checks(where, guestText(n),
		check{
			!g.Plugged, "its VMM has no device for it any longer",
			"vmnet detach --vm " + n.VM + " --nic " + n.ID + ", then attach",
		},
		check{
			g.RunState != "" && g.RunState != "running", "the guest does not run: its VMM is in state " + g.RunState,
			resume(n),
		},
		check{
			off(g.Driver), "no driver of the guest has started the device",
			"in the guest: modprobe virtio_net, and ip link set up; wait if it still boots",
		},
		check{
			g.Broken != nil && *g.Broken, "QEMU has stopped the device after an error of its driver",
			"restart the guest",
		},
		check{off(g.LinkUp), "the guest's driver sees no carrier", linkUp(n)},
		check{
			n.Process.Seen && !n.Process.Vhost && g.OnVhost != nil && *g.OnVhost,
			"its vhost thread has ended, so nobody moves its frames", "vmnet detach, then attach; dmesg may say why",
		},
	)
}

// guestText describes a guest that works.
func guestText(n *NIC) string {
	text := "runs"
	if g := n.Guest; g.Driver != nil {
		text += ", its driver is ready"
	}
	if mac := n.mac(); mac != nil {
		text += ", MAC " + mac.String()
		if n.MAC != "" && mac.String() != n.MAC {
			text += " (set by the guest; its NIC has " + n.MAC + ")"
		}
	}
	if g := n.Guest; g.OnVhost != nil && *g.OnVhost {
		text += ", on vhost-net"
	}
	return text
}

// notAsked returns the notice of why a guest was not asked.
func notAsked(notices []string) string {
	for _, text := range notices {
		if _, why, ok := strings.Cut(text, "the guest was not asked: "); ok {
			return ": " + why
		}
	}
	return ""
}

func resume(n *NIC) string {
	if n.Via == nic.ViaLibvirt || n.Foreign {
		return "virsh resume " + n.VM
	}
	return `by its monitor: {"execute": "cont"}`
}

func linkUp(n *NIC) string {
	if n.Foreign {
		return "virsh domif-setlink " + n.VM + " " + n.Interface + " up"
	}
	return "vmnet set --vm " + n.VM + " --nic " + n.ID + " --link up; or by its monitor: set_link"
}

// unfinished stops the frame of a NIC that is not, or no longer, a working one.
func (w *walker) unfinished(where string, n *NIC) {
	const reconcile = "vmnet reconcile"
	switch n.State {
	case nic.LeftOver:
		w.stop(where, reconcile, "no process holds %s: its guest has ended", n.Interface)
	case nic.Incomplete, nic.Changing, nic.Attaching:
		w.stop(where, reconcile, "a verb works on the NIC, or was cut short (%s)", n.State)
	case nic.Detaching:
		w.stop(where, "vmnet detach --vm "+n.VM+" --nic "+n.ID, "the guest was asked to release the NIC")
	case nic.Starting:
		cure := "virsh start " + n.VM
		if n.Via == nic.ViaName {
			cure = "start its VMM, which opens " + n.Interface
		}
		w.stop(where, cure, "the guest has not started yet")
	case nic.Prepared:
		w.stop(where, "vmnet commit --vm "+n.VM, "the NIC is down until it is committed")
	case nic.Gone:
		w.stop(where, "vmnet detach --vm "+n.VM+" --nic "+n.ID+", then attach",
			"its device was deleted under the guest")
	}
}

// leaveInterface follows the frame through the host interface.
func (w *walker) leaveInterface() { w.hostInterface(w.NIC) }

// hostInterface reports whether a NIC's host interface works.
func (w *walker) hostInterface(n *NIC) {
	l := n.Link
	if l == nil {
		if n.State == nic.Hidden {
			w.unknown(n.Type+" "+n.Interface, "run it as root", "no process is seen that holds it")
		}
		return // a socket
	}
	text := fmt.Sprintf("up, MTU %d", l.MTU)
	if len(n.Holders) > 0 {
		text += fmt.Sprintf(", read by process %d", n.Holders[0].PID)
	}
	name := n.VM + " --nic " + n.ID
	w.checks(n.Type+" "+l.Name, text,
		check{!l.Up, "it is down", "ip link set " + l.Name + " up"},
		check{
			l.Tun != nil && !l.Tun.Attached && len(n.Holders) == 0, "no process reads it: it has no open queue",
			"start its guest, or vmnet reconcile",
		},
		check{
			l.Tun != nil && !l.Carrier && len(n.Holders) > 0, "its carrier is off",
			"vmnet set --vm " + name + " --link up, or ip link set " + l.Name + " carrier on",
		},
	)
}

// read stops what is for a guest that does not read its full queue.
func (w *walker) read(n *NIC) {
	if n.Link != nil && n.Link.Tun != nil && n.Choked > 0 {
		w.stop("queue of "+n.Link.Name, "look at the guest: it hangs, or its driver has the interface down",
			"it is full and the guest does not read it: %s for it were dropped meanwhile", frames(n.Choked))
	}
}

// leavePort follows the frame through the checks and limits of the guest's own frames.
func (w *walker) leavePort() {
	w.portSecurity()
	if r := w.NIC.Rates; !w.stopped && !r.IsZero() {
		w.pass("rates", "%s%s", r.String(), dropped(w.NIC.Drops, "rate"))
	}
	if !w.stopped {
		w.ingress()
	}
}

// portSecurity asks the checker of port security itself.
func (w *walker) portSecurity() {
	n := w.NIC
	if n.PortSecurity == "" {
		return
	}
	const where = "port security"
	cfg := portsec.Config{EtherTypes: n.EtherTypes}
	var err error
	if cfg.Checks, err = portsec.ParseChecks(n.PortSecurity); err == nil {
		cfg.MAC, err = net.ParseMAC(n.MAC)
	}
	if err != nil {
		w.unknown(where, "vmnet show "+n.VM, "%v", err)
		return
	}
	for _, a := range n.IP {
		cfg.IPs = append(cfg.IPs, prefixOf(a))
	}
	cfg.IPs = append(cfg.IPs, n.Nets...)
	reason := portsec.NewChecker(cfg).Verdict(w.bytes())
	if reason != portsec.Pass {
		set := "vmnet set --vm " + n.VM + " --nic " + n.ID
		cure := set + " --port-security none"
		switch reason {
		case portsec.SourceMAC:
			cure = "in the guest: ip link set dev DEV address " + n.MAC + "; or " + cure
		case portsec.SourceIP, portsec.ForgedARP, portsec.ForgedND:
			cure = "give the guest one of its own addresses, or " + set + " --ip ADDRESS"
		}
		w.stop(where, cure, "%s drops it (%s)%s", n.PortSecurity, reason, w.spoofed(reason))
		return
	}
	w.pass(where, "%s lets it pass%s", n.PortSecurity, dropped(n.Drops, ""))
}

// spoofed says which source the guest uses.
func (w *walker) spoofed(reason portsec.Reason) string {
	switch a := w.NIC.address(w.To.Addr); {
	case reason == portsec.SourceMAC:
		return ": the guest sends from " + w.NIC.mac().String()
	case a.IsValid():
		return ": the guest has the address " + a.String()
	}
	return ""
}

// dropped returns how many frames were dropped for a reason, for all if that is empty.
func dropped(drops map[string]uint64, why string) string {
	total := uint64(0)
	for reason, n := range drops {
		if why == "" || reason == why {
			total += n
		}
	}
	if total == 0 {
		return ""
	}
	return fmt.Sprintf(" (it has dropped %d others)", total)
}
