package inventory

import (
	"cmp"
	"fmt"
	"net"
	"strings"

	"vmnet/bridge/portrate"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Remedy is what mends a difference.
type Remedy struct {
	By   nic.Mender
	Cure string // what a person types or does

	// Of MendReconcile: what it takes, and what it then has done, in words.
	Text, Done string
	Fix        Fix
	// Of the others: the finding in words of its own; empty for the usual ones.
	left string
}

// A Fix says what mends a difference, as data. Package backend carries it out.
type Fix struct {
	Kind  FixKind
	Attrs []rtnl.Attr // of FixLink
	Name  string      // of FixAltName
}

// FixKind is the kind of a Fix.
type FixKind int

// What a Fix mends.
const (
	NotFixed      FixKind = iota // by a person, or by another verb
	FixLink                      // the settings of the link
	FixMTU                       // the device's, to what it should carry
	FixIPv6                      // no address of the host on the device
	FixMode                      // of a macvtap, to that of its record
	FixAltName                   // a further name of the link
	FixBridge                    // it becomes a port of its bridge again
	FixPort                      // the settings of its bridge's port
	FixPortState                 // forwarding
	FixSecurity                  // what the kernel checks of the guest's frames
	FixInbound                   // what the kernel lets in to the guest
	FixRates                     // what the kernel limits of them
	FixLifetime                  // that of its guest
	FixSwitch                    // it becomes a port of its switch again
	FixSwitchPort                // the settings of its switch's port
	FixRouting                   // what a routed NIC needs of the host
)

// ReconcileCommand is the cure of differences that reconcile mends.
const ReconcileCommand = "vmnet reconcile"

// byReconcile returns a remedy that reconcile carries out.
func byReconcile(text, done string, f Fix) Remedy {
	return Remedy{By: nic.MendReconcile, Cure: ReconcileCommand, Text: text, Done: done, Fix: f}
}

func byAdmin(format string, args ...any) Remedy {
	return Remedy{By: nic.MendAdmin, Cure: fmt.Sprintf(format, args...)}
}

// byDetach returns the remedy of what is fixed when the NIC is made.
func byDetach(v *View) Remedy {
	return Remedy{By: nic.MendDetach, Cure: v.detachCommand() + "; then attach it again"}
}

func (dev *Device) detachCommand() string {
	return console.Quote([]string{"vmnet", "detach", "--vm", dev.Want.VM, "--nic", dev.Want.NIC})
}

// setting returns the remedy of a link's setting.
func setting(v *View, what string, attrs ...rtnl.Attr) Remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: %s", v.Name, what), "set: "+what, Fix{Kind: FixLink, Attrs: attrs})
}

func mendDetach(v *View) Remedy {
	return Remedy{
		By: nic.MendDetach, Cure: v.detachCommand() + " waits for it; so does its restart",
		left: "the guest has not released it yet",
	}
}

func mendLifetime(v *View) Remedy {
	return byReconcile(fmt.Sprintf("TUNSETPERSIST 0 on a copy of QEMU's own fd of %s", v.Name),
		"made to go with its guest",
		Fix{Kind: FixLifetime})
}

func mendMAC(v *View) Remedy {
	mac, _ := net.ParseMAC(wantMAC(v))
	if v.isIPVtap() {
		r := byDetach(v)
		r.left = fmt.Sprintf("its parent device %s has another address than the guest now: %s", v.Home.Name, r.Cure)
		return r
	}
	return setting(v, "address "+mac.String(), rtnl.MAC(mac))
}

func mendMTU(v *View) Remedy {
	r := setting(v, fmt.Sprintf("mtu %d", v.WantMTU()))
	r.Fix = Fix{Kind: FixMTU}
	return r
}

func mendIPv6(v *View) Remedy {
	r := setting(v, "inet6 addr_gen_mode none")
	r.Fix = Fix{Kind: FixIPv6}
	return r
}

// mendMode: the kernel refuses to change into or out of passthru, and forgets the senders of mode
// source.
func mendMode(v *View) Remedy {
	found := macvlan.ModeName(v.Link)
	if v.Want.Mode == "passthru" || found == "passthru" || v.Want.Mode == "source" {
		return byDetach(v)
	}
	what := "mode " + v.Want.Mode
	return byReconcile(fmt.Sprintf("RTM_NEWLINK %s: %s", v.Name, what), "set: "+what, Fix{Kind: FixMode})
}

func mendRxFilter(v *View) Remedy {
	all := v.Want.RxFilter != nic.RxNone
	return setting(v, "allmulti "+nic.OnOff(all), rtnl.AllMulti(all))
}

func mendName(v *View) Remedy {
	name := v.missingName()
	return byReconcile(fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", v.Name, name), "given the altname "+name,
		Fix{Kind: FixAltName, Name: name})
}

func mendBridge(v *View) Remedy {
	if v.IsOVS() {
		return mendOVSBridge(v)
	}
	free := console.Quote([]string{"ip", "link", "set", v.Name, "nomaster"}) + " && vmnet reconcile"
	switch {
	case v.MasterName != "" && v.Want.Phase == nic.PhaseChanging && v.Home != nil && !v.IsRouted() && !v.Want.Switch:
		return byReconcile(
			fmt.Sprintf("RTM_SETLINK %s: no master; mtu %d, master %s%s, %s", v.Name, v.Home.MTU, v.Home.Name,
				portText(v.Want.Port), wantLink(v)), "moved to "+v.Home.Name, Fix{Kind: FixBridge})
	case v.MasterName != "" && v.IsRouted():
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, and its guest's addresses are routed", v.MasterName)
		return r
	case v.MasterName != "" && v.Want.Switch:
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, and belongs on switch %s", v.MasterName, v.Want.Source)
		return r
	case v.MasterName != "":
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, not of %s", v.MasterName, v.Want.Source)
		return r
	case v.Home == nil && v.Want.Network != "":
		return byAdmin("vmnet network apply %s && vmnet reconcile", v.Want.Network)
	case v.Home == nil:
		return byAdmin("vmnet bridge create %s && vmnet reconcile", v.Want.Source)
	}
	br := v.Home
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: mtu %d, master %s, %s", v.Name, br.MTU, br.Name, wantLink(v)),
		"put back on "+br.Name, Fix{Kind: FixBridge})
}

// portText returns settings of a port for a step's text.
func portText(port string) string {
	if port == "" {
		return ""
	}
	return " with " + port
}

// mendNetwork: the bridge is there, and is not the network's.
func mendNetwork(v *View) Remedy { return byAdmin("vmnet network check %s", v.Want.Network) }

func mendPort(v *View) Remedy {
	if v.IsOVS() {
		return mendOVSPort(v)
	}
	want := v.Want.PortConfig()
	text := fmt.Sprintf("port set to %s, it was %s", OrNothing(bridges.Effective(v.Home, want).String()),
		OrNothing(v.port.String()))
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: %s", v.Name, OrNothing(want.String())),
		text, Fix{Kind: FixPort})
}

func mendRates(v *View) Remedy {
	if err := v.rates.Obstacle(v.Want.Rates); err != nil {
		r := byAdmin("remove what another program has put in the place; then %s", ReconcileCommand)
		r.left = fmt.Sprintf("its rates are not in force: %v", err)
		return r
	}
	want := cmp.Or(wantRates(v), portrate.None)
	return byReconcile(fmt.Sprintf("tbf and BPF of %s: %s", v.Name, want),
		fmt.Sprintf("rates set to %s, they were %s", want, foundRates(v)), Fix{Kind: FixRates})
}

func mendGuard(v *View) Remedy {
	want := wantGuard(v)
	return byReconcile(fmt.Sprintf("BPF_PROG_LOAD; RTM_NEWTFILTER %s: %s", v.Name, want),
		fmt.Sprintf("port security set to %s, it was %s", want, foundGuard(v)), Fix{Kind: FixSecurity})
}

func mendInbound(v *View) Remedy {
	want := wantInbound(v)
	return byReconcile(fmt.Sprintf("BPF_PROG_LOAD; RTM_NEWTFILTER %s, both directions: allow in %s", v.Name, want),
		fmt.Sprintf("what may come in set to %s, it was %s", want, foundInbound(v)), Fix{Kind: FixInbound})
}

func mendVLAN(v *View) Remedy {
	return Remedy{
		By: nic.MendDetach,
		Cure: fmt.Sprintf(
			"%s has no default VLAN, so that nothing passes a port without --vlan: %s; then attach it with --vlan",
			v.Home.Name, v.detachCommand()),
	}
}

func mendSeat(v *View) Remedy {
	switch {
	case !v.MayRejoin():
		return Remedy{
			By: nic.MendAttach, Cure: cureOfLost,
			left: fmt.Sprintf("switch %s has lost it, so it is disconnected (%s)", v.Want.Source, cureOfLost),
		}
	case v.notRuns != nil:
		r := byAdmin("vmnet reconcile, once the switch runs")
		r.left = v.notRuns.Error()
		return r
	}
	if v.Want.Former != "" {
		return byReconcile(
			fmt.Sprintf("switch %s: remove-port %s; switch %s: add-port %[2]s", v.Want.Former, v.Name, v.Want.Source),
			"moved to switch "+v.Want.Source, Fix{Kind: FixSwitch})
	}
	return byReconcile(fmt.Sprintf("switch %s: add-port %s again, which it has lost", v.Want.Source, v.Name),
		"joined again to switch "+v.Want.Source, Fix{Kind: FixSwitch})
}

func mendSettings(v *View) Remedy {
	return byReconcile(
		fmt.Sprintf("switch %s: set-port %s: %s", v.Want.Source, v.SwitchPort.Port.Name,
			settingsText(v.Want.SwitchPortConfig())),
		"given its port's settings again", Fix{Kind: FixSwitchPort})
}

// mendLoop: the switch starts the port again once the loop has ended.
func mendLoop(v *View) Remedy {
	return byAdmin("end the loop behind it (vmnet switch show %s)", v.Want.Source)
}

func mendLink(v *View) Remedy {
	return setting(v, wantLink(v), rtnl.Up(wantLink(v) == nic.UpDown(true)))
}

func mendCarrier(v *View) Remedy {
	return setting(v, "carrier "+wantCarrier(v), rtnl.Carrier(!v.Want.LinkDown))
}

func mendPortState(v *View) Remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: state forwarding", v.Name), "set: forwarding",
		Fix{Kind: FixPortState})
}

func mendHome(v *View) Remedy {
	r := byAdmin("ip link set %s up", v.Home.Name)
	what := "parent device"
	if v.onBridge() {
		what = "bridge"
	}
	r.left = fmt.Sprintf("%s %s is down, nothing passes it (%s)", what, v.Home.Name, r.Cure)
	return r
}

func mendClaim(v *View) Remedy {
	r := byAdmin("vmnet switch remove-port SWITCH %s (vmnet switch list shows those that run)", v.Home.Name)
	r.left = ClaimedText(v.Home.Name, v.Want.Type)
	return r
}

// cureOfLost is the cure of a NIC by a socket whose switch has ended.
const cureOfLost = "the same vmnet attach again replaces it"

// ClaimedText says that a userspace switch has a device, and what that means for a device of that
// kind on it.
func ClaimedText(device, kind string) string {
	return fmt.Sprintf(
		"%s is a port of a userspace switch, which takes all its frames: a %s on it "+
			"would receive nothing (attach with --switch; vmnet switch list names the switch)",
		device, kind)
}

// mendRouting: an uplink that was taken out and put in again is another link of the same name.
func mendRouting(v *View) Remedy {
	if v.Home == nil {
		r := byAdmin("bring %s back; then vmnet reconcile", v.Want.Source)
		r.left = fmt.Sprintf("its uplink %s has gone (%s)", v.Want.Source, r.Cure)
		return r
	}
	if len(v.answers) > 0 {
		what := nic.FormatIPs(v.answers)
		return byReconcile(fmt.Sprintf("RTM_DELNEIGH %s: NTF_PROXY, %s", v.Home.Name, what),
			"withdrawn: the answers for "+what, Fix{Kind: FixRouting})
	}
	what := strings.Join(v.missing, ", ")
	return byReconcile(fmt.Sprintf("%s of %s: %s", v.Name, v.Want.Source, what), "restored: "+what,
		Fix{Kind: FixRouting})
}

// goneFinding is the only finding about a NIC whose device was deleted.
func goneFinding(v *View) Finding {
	on, with := "bridge "+v.Want.Source, ""
	switch {
	case v.Want.Switch:
		on = "switch " + v.Want.Source
	case v.IsRouted():
		on = "the host, routed by " + v.Want.Source
	case v.Want.Type != nic.TypeTap && !v.IsOVS():
		on, with = v.Want.Source, ", most likely with its parent device"
	}
	r := Remedy{
		By: nic.MendAttach,
		Cure: fmt.Sprintf("%s; the same vmnet attach again does so and replaces it, once %s is there",
			v.detachCommand(), v.Want.Source),
	}
	return Finding{
		"device on the host", fmt.Sprintf("a %s on %s", v.Want.Type, on),
		"none: it was deleted under the guest" + with, r,
	}
}

func mendTrouble(v *View) Remedy {
	r := byAdmin("ovs-vsctl list Interface %s; systemctl status openvswitch-switch", v.Name)
	r.left = fmt.Sprintf("its port does not work, in the words of Open vSwitch: %.300q (%s)",
		v.OVS.Port.Trouble(), r.Cure)
	return r
}

// mendOVSBridge is about a NIC whose port is not on its bridge of Open vSwitch.
func mendOVSBridge(v *View) Remedy {
	if v.MasterName != "" {
		r := byAdmin("take %s off %s; then vmnet reconcile", v.Name, v.MasterName)
		r.left = fmt.Sprintf("it is a port of %s, not of %s", v.MasterName, v.Want.Source)
		return r
	}
	return byReconcile(fmt.Sprintf("OVSDB transact: insert Port %s of %s", v.Name, v.Want.Source),
		"put back on "+v.Want.Source, Fix{Kind: FixBridge})
}

func mendOVSPort(v *View) Remedy {
	return byReconcile(fmt.Sprintf("OVSDB transact: update Port %s: %s, %s", v.Name,
		OrNothing(v.Want.PortConfig().String()), wantIDs(v)),
		"its row in Open vSwitch's database set back", Fix{Kind: FixPort})
}
